//! Memory of a running sandbox.
//!
//! Memory counts that can't be dropped: anonymous, shared, and in a tmpfs. A sandbox's control group
//! knows it; where there is none, as without root, the processes of its PID namespace are summed up, and with them what
//! is in `/dev/shm` and in files without a name (`memfd_create`), whether a process has it mapped or not.

use super::deleted_files::{is_deleted, numbers};
use rustix::fs::{stat, statfs};
use std::{
    collections::HashSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Mount point of control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Type of a tmpfs (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Time for a walk through the open files of a sandbox: the guard of the memory waits for it.
const WALK_TIMEOUT: Duration = Duration::from_millis(500);
/// Unit of `st_blocks`, in bytes.
const BLOCK_BYTES: u64 = 512;

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
    let own: Vec<_> = numbers("/proc")
        .filter(|pid| namespace(*pid).as_ref() == Some(&inside))
        .collect();
    let statuses = own.iter();
    let statuses =
        statuses.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
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
    let shm = format!("/proc/{init}/root/dev/shm");
    let in_files = tmpfs_bytes(&shm)
        .unwrap_or(0)
        .saturating_add(unnamed_bytes(&own, &shm));
    Some(anonymous.saturating_add(shared.max(in_files)))
}

/// Bytes of the files without a name that processes have open and that are in memory, other than those in the tmpfs at
/// `shm`.
fn unnamed_bytes(pids: &[u32], shm: &str) -> u64 {
    let deadline = Instant::now() + WALK_TIMEOUT;
    let shm = stat(shm).ok().map(|shm| shm.st_dev);
    let mut seen = HashSet::new();
    let mut bytes = 0_u64;
    // Each thread may have descriptors of its own.
    let threads = pids
        .iter()
        .flat_map(|pid| numbers(format!("/proc/{pid}/task")));
    for thread in threads {
        for number in numbers(format!("/proc/{thread}/fd")) {
            let path = format!("/proc/{thread}/fd/{number}");
            let Ok(file) = stat(&path) else { continue };
            let is_counted = is_deleted(&file) && Some(file.st_dev) != shm;
            if is_counted && seen.insert((file.st_dev, file.st_ino)) && is_in_tmpfs(&path) {
                let blocks = u64::try_from(file.st_blocks).unwrap_or(0);
                bytes = bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
            }
        }
        if Instant::now() > deadline {
            break;
        }
    }
    bytes
}

fn is_in_tmpfs(path: &str) -> bool {
    statfs(path).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(TMPFS_MAGIC))
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
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

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

    #[test]
    fn memory_without_name_counts_once() {
        let bytes = 16 << 20;
        let unnamed = || unnamed_bytes(&[std::process::id()], "/dev/shm");
        let before = unnamed();
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
        let again = file.try_clone().unwrap();
        let gained = unnamed() - before;
        assert!((bytes..bytes + (1 << 20)).contains(&gained), "{gained}");
        drop((file, again));
        assert!(unnamed() < before + bytes);
    }
}
