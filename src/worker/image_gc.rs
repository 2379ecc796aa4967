//! Keeps the images of jobs from filling the disk.

use super::{disk::Purpose, job::Workshop};
use std::{sync::Arc, time::Duration};

/// Between two looks; with a short age a tenth of it.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// Images go early while less than so many times the reserve is free: before a job is refused for it.
const EARLY_FACTOR: u64 = 2;

/// Removes images that this node pulled and that no job used for `age`, or sooner where room is short, for
/// as long as it is awaited.
pub(super) async fn run(shop: Arc<Workshop>, age: Duration) {
    let interval = (age / 10).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
    loop {
        tokio::time::sleep(interval).await;
        if shop.engine.trouble().is_none() {
            shop.images.collect(age, || is_short(&shop)).await;
        }
    }
}

fn is_short(shop: &Workshop) -> bool {
    let reserve = shop.disk.min_free.saturating_mul(EARLY_FACTOR);
    let space = shop.disk.place(Purpose::Images).space();
    space.is_ok_and(|space| space.shortage(reserve).is_some())
}
