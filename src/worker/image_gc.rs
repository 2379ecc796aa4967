//! Removal of images that jobs no longer use, so that they do not fill the disk.

use super::{context::WorkerContext, disk::StorageArea};
use crate::disk_space::DiskSpace;
use std::{sync::Arc, time::Duration};

/// Longest interval of the collection; with a short age it is a tenth of that.
const MAX_INTERVAL: Duration = Duration::from_secs(10);
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Images go early while less than this multiple of the reserve is free: before jobs are refused for it.
const PRESSURE_RESERVE_FACTOR: u64 = 2;
/// Age at which an unused image goes early. A shorter one would have images pulled again and again while a single
/// job takes much space.
const PRESSURE_MAX_AGE: Duration = Duration::from_hours(1);

/// Removes images that this node pulled and that no job used for `age`, or sooner where space is short, for as long
/// as the worker lives.
pub(super) async fn run_image_gc(ctx: Arc<WorkerContext>, age: Duration) {
    let interval = (age / 10).clamp(MIN_INTERVAL, MAX_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        if ctx.engine.health_error().is_none() {
            ctx.images.remove_unused(|| max_unused_age(&ctx, age)).await;
        }
    }
}

/// Age up to which an unused image stays now.
async fn max_unused_age(ctx: &Arc<WorkerContext>, age: Duration) -> Duration {
    let look = |ctx: &WorkerContext| ctx.disk.dir(StorageArea::Images).space();
    match ctx.probe_disk(look).await {
        Ok(Ok(space)) => max_unused_age_at(&space, ctx.disk.min_free, age),
        _ => age,
    }
}

/// Same as [`max_unused_age`] with this free space: zero below the reserve itself, where jobs are refused.
fn max_unused_age_at(space: &DiskSpace, reserve: u64, age: Duration) -> Duration {
    let is_below = |reserve| space.shortage(reserve).is_some();
    if is_below(reserve) {
        Duration::ZERO
    } else if is_below(reserve.saturating_mul(PRESSURE_RESERVE_FACTOR)) {
        age.min(PRESSURE_MAX_AGE)
    } else {
        age
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_space::Capacity;

    #[test]
    fn recent_images_stay_above_reserve() {
        let limit = |free, age| {
            let bytes = Capacity { free, total: 1000 };
            let space = DiskSpace {
                bytes,
                inodes: None,
            };
            max_unused_age_at(&space, 100, age)
        };
        let (month, minute) = (Duration::from_hours(720), Duration::from_mins(1));
        assert_eq!(limit(200, month), month);
        assert_eq!(limit(199, month), Duration::from_hours(1));
        assert_eq!(limit(100, minute), minute);
        assert_eq!(limit(99, month), Duration::ZERO);
    }
}
