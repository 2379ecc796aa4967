//! Keeps the images of jobs from filling the disk.

use super::{disk::Purpose, job::Workshop};
use crate::disk_space::DiskSpace;
use std::{sync::Arc, time::Duration};

/// Between two looks; with a short age a tenth of it.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// Images go early while less than so many times the reserve is free: before a job is refused for it.
const EARLY_FACTOR: u64 = 2;
/// How long an image is unused before it goes early: or one job that takes room would have every image pulled
/// again and again.
const EARLY_AGE: Duration = Duration::from_hours(1);

/// Removes images that this node pulled and that no job used for `age`, or sooner where room is short, for
/// as long as it is awaited.
pub(super) async fn run(shop: Arc<Workshop>, age: Duration) {
    let interval = (age / 10).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        if shop.engine.trouble().is_none() {
            shop.images.collect(|| limit(&shop, age)).await;
        }
    }
}

/// How long an image may be unused now.
fn limit(shop: &Workshop, age: Duration) -> Duration {
    let space = shop.disk.place(Purpose::Images).space();
    space.map_or(age, |space| limit_at(&space, shop.disk.min_free, age))
}

/// The same with so much room: none below the reserve itself, where jobs are refused.
fn limit_at(space: &DiskSpace, reserve: u64, age: Duration) -> Duration {
    let is_below = |reserve| space.shortage(reserve).is_some();
    if is_below(reserve) {
        Duration::ZERO
    } else if is_below(reserve.saturating_mul(EARLY_FACTOR)) {
        age.min(EARLY_AGE)
    } else {
        age
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_space::Amount;

    #[test]
    fn images_of_the_last_hour_stay_above_the_reserve() {
        let limit = |free, age| {
            let bytes = Amount { free, total: 1000 };
            let space = DiskSpace {
                bytes,
                inodes: None,
            };
            limit_at(&space, 100, age)
        };
        let (month, minute) = (Duration::from_hours(720), Duration::from_mins(1));
        assert_eq!(limit(200, month), month);
        assert_eq!(limit(199, month), Duration::from_hours(1));
        assert_eq!(limit(100, minute), minute);
        assert_eq!(limit(99, month), Duration::ZERO);
    }
}
