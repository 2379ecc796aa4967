//! Memory and CPU time of processes, as the kernel counts them.

use super::run;
use std::{fs, path::Path, process::Command};

/// Unit of times in /proc/PID/stat: USER_HZ, which is 100 on x86-64 and arm64.
const TICKS_PER_SECOND: f64 = 100.0;

/// Proportional set size in MiB: private memory, and a fair share of what processes share.
pub fn pss(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib(&text, "Pss:") / 1024.0
}

/// Proportional set size of several processes in MiB.
pub fn pss_of(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| pss(*pid)).sum()
}

/// Largest resident memory of a process since the start or the last [`reset_peak`], in MiB.
pub fn peak(pid: u32) -> f64 {
    status(pid, "VmHWM:")
}

/// Resident memory of a process in MiB.
pub fn resident(pid: u32) -> f64 {
    status(pid, "VmRSS:")
}

/// Forgets the largest resident memory of a process.
pub fn reset_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn status(pid: u32, name: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib(&text, name) / 1024.0
}

fn kib(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.unwrap_or_default().trim().trim_end_matches(" kB");
    number.parse().unwrap_or(0.0)
}

/// CPU seconds that processes have used, their ended children included.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks = pids.iter().map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // proc(5): the name in parentheses may contain spaces; utime is the 14th field, and three more follow it.
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        let times = fields.split(' ').skip(11).take(4);
        times
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
    });
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

/// Processes of the sandboxes of a data directory: shims and what they started, and each container's conmon and init.
pub fn sandbox_processes(node: u32, data_dir: &Path) -> Vec<u32> {
    let mut pids = descendants(node);
    let running = run(Command::new("podman").args(["ps", "--quiet"]));
    let format = "{{.State.ConmonPid}} {{.State.Pid}}{{range .Mounts}} {{.Source}}{{end}}";
    for id in running.split_whitespace() {
        // One that has ended meanwhile is none of ours.
        let inspected = Command::new("podman")
            .args(["container", "inspect", "--format", format, id])
            .output()
            .unwrap();
        let line = String::from_utf8_lossy(&inspected.stdout).into_owned();
        if line.contains(data_dir.to_str().unwrap()) {
            let own = line.split_whitespace().take(2);
            pids.extend(own.filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// All processes below a process.
fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(parent) = next.pop() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        found.extend(&children);
        next.extend(children);
    }
    found
}
