//! Tasks a second, beside as many `podman run --rm` at a time, and bursts.
//!
//! A node with N slots drains a queue of tasks that run `true`; `xargs -P N podman run --rm` runs as many. With warm
//! sandboxes the same is measured in a steady state: the node refills while it drains.

use crate::{
    figures::Figure,
    support::{
        podman,
        roles::{System, has_warm},
        time,
    },
};

const SLOTS: [usize; 4] = [1, 2, 4, 8];
/// Tasks of each measurement.
const TASKS: usize = 48;
const BURST: usize = 100;
const BURST_SLOTS: usize = 8;
/// Tasks of a burst that finds as many warm sandboxes.
const WARM_BURST: usize = 20;

pub fn bench() -> Vec<Figure> {
    let home = tempfile::tempdir().unwrap();
    let mut system = System::orchestrator(home.path());
    let mut figures = Vec::new();
    for slots in SLOTS {
        let by_hand = rate(TASKS, || podman::run_many(TASKS, slots));
        figures.push(Figure::plain(
            format!("by hand, {slots} at a time"),
            "/s",
            by_hand,
        ));
        for (name, warm, goal) in [
            ("without warm ones", 0, 1.0),
            ("with warm ones", 2 * slots, 1.3),
        ] {
            if warm > 0 && !has_warm() {
                continue;
            }
            system.start_node(slots, warm);
            let tasks = rate(TASKS, || system.api.run_many(TASKS));
            system.node = None;
            let name = format!("{name}, {slots} slots");
            figures.push(Figure::higher(name, "× by hand", tasks / by_hand).at_least(goal));
        }
    }
    figures.push(burst(&mut system, BURST, BURST_SLOTS, 0, None));
    if has_warm() {
        figures.push(burst(
            &mut system,
            WARM_BURST,
            WARM_BURST,
            WARM_BURST,
            Some(0.3),
        ));
    }
    figures
}

fn rate(count: usize, work: impl FnOnce()) -> f64 {
    count as f64 / time(work).as_secs_f64()
}

/// Time of a burst over that of as many `podman run`, all at once.
fn burst(
    system: &mut System,
    count: usize,
    slots: usize,
    warm: usize,
    goal: Option<f64>,
) -> Figure {
    let by_hand = time(|| podman::run_many(count, count));
    system.start_node(slots, warm);
    let tasks = time(|| system.api.run_many(count));
    system.node = None;
    let ratio = tasks.as_secs_f64() / by_hand.as_secs_f64();
    let name = format!("burst of {count} at {slots} slots, {warm} warm ones");
    let figure = Figure::lower(name, "× by hand", ratio);
    match goal {
        Some(goal) => figure.at_most(goal),
        None => figure,
    }
}
