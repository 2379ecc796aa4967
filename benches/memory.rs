//! Memory of the roles, and what idle sandboxes cost.
//!
//! Memory is the proportional set size of smaps_rollup: private memory, and a fair share of what processes share, such
//! as pages of the binary. So the figures of a node's processes can be added up. A sandbox counts with all its
//! processes: shim, conmon, init, and the podman client where there is one.

use crate::{
    creates,
    figures::Figure,
    support::{
        processes::{cpu_seconds, pss, pss_of, sandbox_processes},
        roles::{SLUG, System, has_warm},
        wait_for,
    },
};
use std::{thread, time::Duration};

const SLOTS: usize = 4;
const QUEUED: usize = 100_000;
/// Time after which a role counts as idle.
const SETTLE: Duration = Duration::from_secs(3);
/// Time over which idle processes are watched.
const WATCH: Duration = Duration::from_secs(20);

pub fn bench() -> Vec<Figure> {
    let home = tempfile::tempdir().unwrap();
    let mut system = System::with_node(home.path(), SLOTS, 0);
    thread::sleep(SETTLE);
    let (orchestrator, node) = (pss(system.orchestrator.id()), pss(system.node_pid()));
    let mut figures = vec![
        Figure::lower("orchestrator, idle", "MiB", orchestrator).at_most(20.0),
        Figure::lower("node, idle", "MiB", node).at_most(14.0),
    ];
    figures.push(running_sandboxes(&system));
    if has_warm() {
        figures.extend(warm_sandboxes(&mut system));
    }
    system.node = None;
    creates::fill(&system, QUEUED);
    thread::sleep(SETTLE);
    let loaded = pss(system.orchestrator.id());
    figures.push(Figure::lower("orchestrator, 100,000 tasks queued", "MiB", loaded).at_most(70.0));
    figures
}

/// Memory of a sandbox whose command waits.
fn running_sandboxes(system: &System) -> Figure {
    let tasks: Vec<_> = (0..SLOTS)
        .map(|_| system.api.create(&["sleep", "1000"]))
        .collect();
    wait_for("running tasks", || {
        let running = system.api.node(SLUG)["running_jobs"].as_u64()?;
        (running == SLOTS as u64).then_some(())
    });
    thread::sleep(SETTLE);
    let pids = sandbox_processes(system.node_pid(), &system.node_dir());
    let each = pss_of(&pids) / SLOTS as f64;
    for task in tasks {
        system
            .api
            .post(&format!("/v1/tasks/{task}/cancel"), &serde_json::json!({}));
    }
    Figure::lower("a sandbox that runs `sleep`, all processes", "MiB", each)
}

/// Memory and CPU time of warm sandboxes that nobody uses.
fn warm_sandboxes(system: &mut System) -> [Figure; 2] {
    system.node = None;
    let cpu = |pids: &[u32]| {
        let before = cpu_seconds(pids);
        thread::sleep(WATCH);
        (cpu_seconds(pids) - before) / WATCH.as_secs_f64() * 3600.0
    };
    system.start_node(SLOTS, 0);
    thread::sleep(SETTLE);
    let alone = cpu(&[system.node_pid()]);
    system.node = None;
    system.start_node(SLOTS, 2 * SLOTS);
    thread::sleep(SETTLE);
    let warm = system.warm_count();
    let mut pids = sandbox_processes(system.node_pid(), &system.node_dir());
    let memory = pss_of(&pids) / warm as f64;
    pids.push(system.node_pid());
    let seconds = (cpu(&pids) - alone).max(0.0) / warm as f64;
    [
        Figure::lower("a warm sandbox, all processes", "MiB", memory).at_most(6.0),
        Figure::plain("a warm sandbox, CPU time in an hour", "s", seconds),
    ]
}
