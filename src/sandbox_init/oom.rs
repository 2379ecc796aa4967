//! Processes of the sandbox that the kernel killed for want of memory, from the sandbox's own control group.
//!
//! Init asks from inside, before it ends: with the last process of a container its control group goes, too.

use std::{fs, path::Path};

/// Mount point of control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Files with the count, of cgroup v2 and of v1.
const FILES: [&str; 2] = ["memory.events", "memory/memory.oom_control"];
/// Name of the count in them.
const COUNT: &str = "oom_kill";

/// Whether the kernel has killed any process of this sandbox for want of memory, be it the sandbox's limit or the
/// machine's. False where the sandbox has no control group for memory.
pub(super) fn has_killed() -> bool {
    let mut files = FILES.into_iter();
    files.any(|file| {
        fs::read_to_string(Path::new(CGROUPS).join(file)).is_ok_and(|text| is_killed(&text))
    })
}

fn is_killed(text: &str) -> bool {
    let mut counts = text.lines().filter_map(|line| line.split_once(' '));
    counts.any(|(name, count)| name == COUNT && count.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_versions() {
        let v2 = |kills: u32| {
            format!("low 0\nhigh 0\nmax 91\noom 2\noom_kill {kills}\noom_group_kill 0\n")
        };
        let v1 = |kills: u32| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
        for kills in [1, 10] {
            assert!(is_killed(&v1(kills)) && is_killed(&v2(kills)), "{kills}");
        }
        assert!(!is_killed(&v1(0)) && !is_killed(&v2(0)) && !is_killed(""));
    }
}
