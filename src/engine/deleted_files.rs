//! Deleted files that processes of a sandbox keep on disk.
//!
//! A deleted file keeps its space while a descriptor of any thread or a mapping refers to it, or while its descriptor is
//! in transit through a socket. The size of the last is never known, and the size of a mapped file only to root on the
//! host: these a measurement can only name.

use rustix::fs::{FileType, Stat, makedev, stat};
use std::{collections::HashSet, fs, io, path::Path, time::Instant};

/// Deleted files of a sandbox.
#[derive(Default)]
pub(super) struct DeletedFiles {
    /// Files of known size, each once.
    pub(super) files: Vec<Stat>,
    /// Devices with files of unknown size.
    pub(super) unmeasured: HashSet<u64>,
    /// Whether descriptors are in transit, so that there may be more files, on any device.
    pub(super) is_in_transit: bool,
    /// Whether the deadline has cut the inspection short.
    pub(super) has_timed_out: bool,
    seen: HashSet<(u64, u64)>,
}

/// Inspects all processes that share a PID namespace with `init`, until the deadline.
pub(super) fn deleted_open_files(init: u32, deadline: Instant) -> DeletedFiles {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let mut found = DeletedFiles::default();
    let Some(inside) = namespace(init) else {
        return found;
    };
    for pid in numbers("/proc") {
        if namespace(pid).as_ref() == Some(&inside) {
            found.add_process(pid, deadline);
        }
        if Instant::now() > deadline {
            found.has_timed_out = true;
            break;
        }
    }
    found
}

impl DeletedFiles {
    fn add_process(&mut self, pid: u32, deadline: Instant) {
        let mut is_mapped = false;
        // Each thread may have descriptors of its own, but all have the same mappings. The first thread may have
        // ended, and has none then.
        for thread in numbers(&format!("/proc/{pid}/task")) {
            self.add_open(thread);
            is_mapped = is_mapped || self.add_mapped(thread);
            if Instant::now() > deadline {
                self.has_timed_out = true;
                return;
            }
        }
    }

    /// Adds the open files of a thread.
    fn add_open(&mut self, thread: u32) {
        for number in numbers(&format!("/proc/{thread}/fd")) {
            let Ok(file) = stat(format!("/proc/{thread}/fd/{number}")) else {
                continue;
            };
            if FileType::from_raw_mode(file.st_mode) == FileType::Socket {
                let fdinfo = fs::read_to_string(format!("/proc/{thread}/fdinfo/{number}"));
                self.is_in_transit |= fdinfo.is_ok_and(|fdinfo| carries_descriptors(&fdinfo));
            }
            self.add(file);
        }
    }

    /// Adds the mapped files of a thread. Returns whether it has any mappings.
    fn add_mapped(&mut self, thread: u32) -> bool {
        let maps = fs::read(format!("/proc/{thread}/maps")).unwrap_or_default();
        let maps = String::from_utf8_lossy(&maps);
        let mut visited = HashSet::new();
        for mapping in maps.lines().filter_map(Mapping::parse) {
            if !visited.insert((mapping.device, mapping.inode)) {
                continue;
            }
            let (start, end) = mapping.range;
            match stat(format!("/proc/{thread}/map_files/{start:x}-{end:x}")) {
                Ok(file) => self.add(file),
                // Unmapped in the meantime.
                Err(error) if io::Error::from(error).kind() == io::ErrorKind::NotFound => {}
                Err(_) if mapping.is_deleted => {
                    self.unmeasured.insert(mapping.device);
                }
                Err(_) => {}
            }
        }
        !maps.is_empty()
    }

    fn add(&mut self, file: Stat) {
        if is_deleted(&file) && self.seen.insert((file.st_dev, file.st_ino)) {
            self.files.push(file);
        }
    }
}

/// Whether descriptors are in transit through a socket, by its `fdinfo` in /proc.
fn carries_descriptors(fdinfo: &str) -> bool {
    let mut counts = fdinfo
        .lines()
        .filter_map(|line| line.strip_prefix("scm_fds:"));
    counts.any(|count| count.trim() != "0")
}

/// A file that is mapped into a process.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    range: (u64, u64),
    device: u64,
    inode: u64,
    is_deleted: bool,
}

impl Mapping {
    /// Parses a line of /proc/PID/maps; `None` for memory without a file.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (major, minor) = fields.nth(2)?.split_once(':')?;
        let inode = fields.next()?.parse().ok().filter(|inode| *inode != 0)?;
        let address = |digits| u64::from_str_radix(digits, 16).ok();
        let number = |digits| u32::from_str_radix(digits, 16).ok();
        Some(Self {
            range: (address(start)?, address(end)?),
            device: makedev(number(major)?, number(minor)?),
            inode,
            is_deleted: line.ends_with(" (deleted)"),
        })
    }
}

/// Whether a regular file has no name.
pub(super) fn is_deleted(file: &Stat) -> bool {
    FileType::from_raw_mode(file.st_mode) == FileType::RegularFile && file.st_nlink == 0
}

/// Entries of a directory in /proc that are numbers.
pub(super) fn numbers(directory: impl AsRef<Path>) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_without_file_are_ignored() {
        let line =
            "00400000-7f0000001000 r--s 00000000 fd:01 77       /a b (deleted)/c\\012 (deleted)";
        let mapping = Mapping {
            range: (0x40_0000, 0x7f00_0000_1000),
            device: makedev(0xfd, 1),
            inode: 77,
            is_deleted: true,
        };
        assert_eq!(Mapping::parse(line), Some(mapping));
        let kept = "00400000-00401000 r-xp 00000000 fd:01 77 /bin/sh";
        assert!(!Mapping::parse(kept).unwrap().is_deleted);
        for line in ["", "00400000-00401000 rw-p 00000000 00:00 0 [heap]", "x"] {
            assert_eq!(Mapping::parse(line), None, "{line}");
        }
    }

    #[test]
    fn descriptors_in_transit_are_found() {
        let fdinfo = |count: &str| format!("pos:\t0\nflags:\t02\nscm_fds: {count}\n");
        assert!(carries_descriptors(&fdinfo("1")));
        assert!(!carries_descriptors(&fdinfo("0")) && !carries_descriptors("pos:\t0\n"));
    }
}
