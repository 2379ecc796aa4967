//! Latency of a task that runs `true`, beside `podman run --rm` of the same command.
//!
//! All ways are taken in turn, so that a change of the machine's speed affects them alike:
//!
//! - by hand: `podman run --rm --network=none`, as a process, from start to exit;
//! - a miss: from `POST /v1/tasks` to the `end` event of its log, over a kept connection, without warm sandboxes;
//! - warm: the same at a node that has a warm sandbox;
//! - `cynode run`: the client as a process, from start to exit, without warm sandboxes.
//!
//! Then misses without a pause between them: each starts while podman removes the sandbox before it.

use crate::{
    figures::Figure,
    support::{
        Times, podman,
        roles::{System, has_warm},
        run, time,
    },
};

const ROUNDS: usize = 100;
const SLOTS: usize = 2;
const WARM: usize = 2 * SLOTS;

/// Durations of each way.
#[derive(Default)]
struct Ways {
    by_hand: Times,
    miss: Times,
    client: Times,
    warm: Times,
}

pub fn bench() -> Vec<Figure> {
    let (home, warm_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let system = System::with_node(home.path(), SLOTS, 0);
    let warm = has_warm().then(|| System::with_node(warm_home.path(), SLOTS, WARM));
    let mut ways = Ways::default();
    for round in 0..=ROUNDS {
        let by_hand = time(podman::run_true);
        let miss = time(|| system.api.run_true());
        let client = time(|| drop(run(system.client().args(["run", "--", "true"]))));
        let warm = warm.as_ref().map(|system| {
            // Refilling is no part of the next way.
            system.wait_warm(WARM);
            let taken = time(|| system.api.run_true());
            system.wait_warm(WARM);
            taken
        });
        // The first round warms caches.
        if round > 0 {
            ways.by_hand.push(by_hand);
            ways.miss.push(miss);
            ways.client.push(client);
            warm.into_iter().for_each(|taken| ways.warm.push(taken));
        }
    }
    drop(warm);
    let back_to_back: Times = (0..ROUNDS)
        .map(|_| time(|| system.api.run_true()))
        .collect();
    figures(&ways, &back_to_back)
}

fn figures(ways: &Ways, back_to_back: &Times) -> Vec<Figure> {
    let base = ways.by_hand.median();
    let millis = |name: String, times: &Times, percent| {
        Figure::plain(name, "ms", times.percentile(percent) * 1000.0)
    };
    let ratio = |name: &str, times: &Times, percent| {
        Figure::lower(name, "× by hand", times.percentile(percent) / base)
    };
    let mut figures = Vec::new();
    for percent in [50, 95, 99] {
        for (name, times) in [("by hand", &ways.by_hand), ("miss", &ways.miss)] {
            figures.push(millis(format!("{name}, p{percent} in ms"), times, percent));
        }
    }
    figures.push(ratio("miss, p50", &ways.miss, 50).at_most(1.05));
    figures.push(ratio("miss, p95", &ways.miss, 95).within(2.0));
    figures.push(ratio("`cynode run`, p50", &ways.client, 50));
    let tail = back_to_back.percentile(95) / back_to_back.median();
    let name = "misses back to back, p95 / p50";
    figures.push(Figure::lower(name, "×", tail).at_most(2.0));
    if has_warm() {
        for percent in [50, 95, 99] {
            figures.push(millis(
                format!("warm, p{percent} in ms"),
                &ways.warm,
                percent,
            ));
        }
        figures.push(ratio("warm, p50", &ways.warm, 50).at_most(0.06));
        figures.push(ratio("warm, p95", &ways.warm, 95).at_most(0.2).within(2.0));
        figures.push(ratio("warm, p99", &ways.warm, 99).at_most(0.5).within(3.0));
    }
    figures
}
