//! Memory of a running sandbox.
//!
//! What counts is what can't be dropped: anonymous memory, and what is shared or in a tmpfs. A sandbox's control group
//! knows it; where there is none, as without root, the processes of its PID namespace are summed up, and with them what
//! is in `/dev/shm`, whether a process has it mapped or not.

use rustix::fs::statfs;
use std::{fs, path::Path};

/// Mount point of control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Type of a tmpfs (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Bytes of memory of the sandbox whose init has this PID; `None` once it is gone.
pub fn sandbox_memory(init: u32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?;
    let from_group = stat_file(&groups).and_then(|file| {
        let text = fs::read_to_string(Path::new(CGROUPS).join(file)).ok()?;
        used_by_group(&text)
    });
    from_group.or_else(|| used_by_processes(init))
}

/// File with the memory of a process's group, below the mount point, by the text of its `cgroup` file. `None` where it
/// is in the group of the host, and so has none of its own.
fn stat_file(groups: &str) -> Option<String> {
    let path_of = |controller: &str| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_it = controllers.split(',').any(|name| name == controller);
            is_it.then(|| path.trim_matches('/'))
        })
    };
    // Of cgroup v1, where memory has a hierarchy of its own, or of v2, whose line names no controller.
    let (top, path) = match path_of("memory") {
        Some(path) => ("memory/", path),
        None => ("", path_of("")?),
    };
    let is_own = path.contains("libpod") && !path.contains("..");
    is_own.then(|| format!("{top}{path}/memory.stat"))
}

/// Bytes by the text of `memory.stat`: of cgroup v2, or of v1 with the groups below.
fn used_by_group(text: &str) -> Option<u64> {
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(found, _)| *found == name)?;
        value.trim().parse::<u64>().ok()
    };
    let sum = |anonymous: &str, shared: &str| Some(value(anonymous)? + value(shared).unwrap_or(0));
    sum("anon", "shmem").or_else(|| sum("total_rss", "total_shmem"))
}

/// Bytes of all processes that share a PID namespace with `init`.
fn used_by_processes(init: u32) -> Option<u64> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let inside = namespace(init)?;
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = pids.filter(|pid| namespace(*pid).as_ref() == Some(&inside));
    let statuses = own.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let (anonymous, shared) = statuses.map(|status| used_by_process(&status)).fold(
        (0_u64, 0_u64),
        |sum, (anonymous, shared)| {
            (
                sum.0.saturating_add(anonymous),
                sum.1.saturating_add(shared),
            )
        },
    );
    // A part of either may be in the other.
    let in_tmpfs = tmpfs_bytes(&format!("/proc/{init}/root/dev/shm")).unwrap_or(0);
    Some(anonymous.saturating_add(shared.max(in_tmpfs)))
}

/// Bytes of the files in a tmpfs; `None` where another filesystem is there.
fn tmpfs_bytes(path: &str) -> Option<u64> {
    let stat = statfs(path).ok()?;
    let is_tmpfs = u64::try_from(stat.f_type) == Ok(TMPFS_MAGIC);
    let block_bytes = u64::try_from(stat.f_bsize).ok()?;
    is_tmpfs.then(|| {
        stat.f_blocks
            .saturating_sub(stat.f_bfree)
            .saturating_mul(block_bytes)
    })
}

/// Anonymous and shared bytes by the text of a process's `status`.
fn used_by_process(status: &str) -> (u64, u64) {
    let kib = |name: &str| {
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(found, _)| *found == name)?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    let bytes = |name| kib(name).unwrap_or(0).saturating_mul(1024);
    (bytes("RssAnon"), bytes("RssShmem"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_of_container_is_found() {
        let v1 =
            "9:name=systemd:/libpod_parent/libpod-ab\n4:memory:/libpod_parent/libpod-ab\n0::/\n";
        assert_eq!(
            stat_file(v1).unwrap(),
            "memory/libpod_parent/libpod-ab/memory.stat"
        );
        let v2 = "0::/machine.slice/libpod-ab.scope/container\n";
        assert_eq!(
            stat_file(v2).unwrap(),
            "machine.slice/libpod-ab.scope/container/memory.stat"
        );
        for other in [
            "",
            "4:memory:/\n0::/libpod-x\n",
            "0::/user.slice\n",
            "0::/../libpod-x\n",
        ] {
            assert_eq!(stat_file(other), None, "{other}");
        }
    }

    #[test]
    fn memory_of_both_versions_is_read() {
        assert_eq!(used_by_group("anon 5\nfile 100\nshmem 7\n"), Some(12));
        let v1 = "cache 1\nrss 5\nshmem 1\ntotal_rss 6\ntotal_shmem 3\n";
        assert_eq!(used_by_group(v1), Some(9));
        assert_eq!(used_by_group(""), None);
        assert_eq!(
            used_by_process("Name:\tx\nRssAnon:\t  8 kB\nRssShmem:\t 2 kB\n"),
            (8 * 1024, 2 * 1024)
        );
        assert!(used_by_processes(std::process::id()).unwrap() > 0);
    }
}
