//! Description of the machine, software and command of a run.

use crate::support::run;
use std::{fs, process::Command, thread};

/// Text of the section.
pub fn describe() -> String {
    let cpu = field("/proc/cpuinfo", "model name");
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal");
    let memory = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 20;
    let kernel = run(Command::new("uname").arg("-r"));
    let podman = run(Command::new("podman").arg("--version"));
    let commit = run(Command::new("git").args(["log", "-1", "--format=%h (%cs)"]));
    let (kernel, podman, commit) = (kernel.trim(), podman.trim(), commit.trim());
    format!(
        "{cores} cores of {cpu}, {memory} GiB of memory, Linux {kernel}, {podman}; commit {commit}; command: `make bench`."
    )
}

/// Value of a line `name : value`.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    line.unwrap_or_else(|| "unknown".to_owned())
}
