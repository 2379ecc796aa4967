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

/// Number of processes of this sandbox that the kernel has killed for want of memory, be it the sandbox's limit or the
/// machine's. Where the sandbox has no control group of its own, those of all others may be among them, so that only an
/// increase means something. 0 where there is no control group for memory.
pub(super) fn kills() -> u64 {
    let mut files = FILES.into_iter();
    let count = files.find_map(|file| {
        let text = fs::read_to_string(Path::new(CGROUPS).join(file)).ok()?;
        count_in(&text)
    });
    count.unwrap_or(0)
}

fn count_in(text: &str) -> Option<u64> {
    let mut counts = text.lines().filter_map(|line| line.split_once(' '));
    let (_, count) = counts.find(|(name, _)| *name == COUNT)?;
    count.trim().parse().ok()
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
        for kills in [0, 1, 10] {
            let count = Some(kills.into());
            assert_eq!((count_in(&v1(kills)), count_in(&v2(kills))), (count, count));
        }
        assert_eq!(count_in(""), None);
    }
}
