//! Keeps the images of jobs from filling the disk.

use super::{context::WorkerContext, disk::StorageArea};
use crate::disk_space::DiskSpace;
use std::{sync::Arc, time::Duration};

/// Between two looks; with a short age a tenth of it.
const MAX_INTERVAL: Duration = Duration::from_secs(10);
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Images go early while less than so many times the reserve is free: before a job is refused for it.
const PRESSURE_RESERVE_FACTOR: u64 = 2;
/// How long an image is unused before it goes early: or one job that takes room would have every image pulled
/// again and again.
const PRESSURE_MAX_AGE: Duration = Duration::from_hours(1);

/// Removes images that this node pulled and that no job used for `age`, or sooner where room is short, for
/// as long as it is awaited.
pub(super) async fn run_image_gc(ctx: Arc<WorkerContext>, age: Duration) {
    let interval = (age / 10).clamp(MIN_INTERVAL, MAX_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        if ctx.engine.health_error().is_none() {
            ctx.images.remove_unused(|| max_unused_age(&ctx, age)).await;
        }
    }
}

/// How long an image may be unused now.
fn max_unused_age(ctx: &WorkerContext, age: Duration) -> Duration {
    let space = ctx.disk.dir(StorageArea::Images).space();
    space.map_or(age, |space| {
        max_unused_age_at(&space, ctx.disk.min_free, age)
    })
}

/// The same with so much room: none below the reserve itself, where jobs are refused.
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
