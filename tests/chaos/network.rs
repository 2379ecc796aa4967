//! A network namespace for a node, on a wire of its own to this host; and ways to cut that wire.
//!
//! In a silent cut, whoever sends believes in a neighbour that isn't there: packets leave and nobody
//! takes them, as behind a switch without power. No end hears of it, so connections stay half open.

use crate::support::server::kill;
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::Path,
    process::Command,
    thread,
};

/// Nobody's.
const NOBODY: &str = "02:00:00:00:00:fe";
/// How the namespaces of all runs are called; the pid of the run and a number follow.
const PREFIX: &str = "cychaos-";

/// What of the network fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Packets vanish both ways.
    Silent,
    /// Packets to the node vanish.
    ToNode,
    /// Packets from the node vanish.
    FromNode,
    /// The cable is pulled: both ends see it.
    Unplugged,
}

/// A namespace and the wire that leads there; both go when dropped.
pub(crate) struct Segment {
    namespace: String,
    wire: String,
    /// The address of this host there.
    pub(crate) host: String,
    /// The address of the node.
    pub(crate) node: String,
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    output
        .status
        .success()
        .then_some(())
        .ok_or(format!("ip {arguments}: {complaint}"))
}

#[track_caller]
fn must(arguments: &str) {
    if let Err(error) = ip(arguments) {
        panic!("{error}");
    }
}

fn wire_of(pid: &str, number: &str) -> String {
    format!("cyc{pid}n{number}")
}

/// Removes what runs that were killed have left: what they started lives in their namespaces.
pub(crate) fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some((pid, number)) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
        else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let command = ["netns", "pids", &name];
            let left = Command::new("ip").args(command).output().unwrap().stdout;
            let pids = String::from_utf8_lossy(&left).into_owned();
            for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                kill(pid, Signal::KILL);
            }
            let _ = ip(&format!("link delete {}", wire_of(pid, number)));
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

impl Segment {
    /// Makes one; `number` is unique in this process.
    pub(crate) fn new(number: u8) -> Self {
        let pid = std::process::id();
        // Of the network that is set apart for tests of networks.
        let (net, low) = (pid % 256, u32::from(number) * 4);
        let segment = Self {
            namespace: format!("{PREFIX}{pid}-{number}"),
            wire: wire_of(&pid.to_string(), &number.to_string()),
            host: format!("198.18.{net}.{}", low + 1),
            node: format!("198.18.{net}.{}", low + 2),
        };
        let Self {
            namespace,
            wire,
            host,
            node,
        } = &segment;
        must(&format!("netns add {namespace}"));
        must(&format!(
            "link add {wire} type veth peer name eth0 netns {namespace}"
        ));
        must(&format!("address add {host}/30 dev {wire}"));
        must(&format!("link set {wire} up"));
        must(&format!("-n {namespace} address add {node}/30 dev eth0"));
        must(&format!("-n {namespace} link set eth0 up"));
        must(&format!("-n {namespace} link set lo up"));
        segment
    }

    /// Does something in it: what is started there stays there. Only the network is another one, so
    /// podman finds all else as it is.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let place = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
                // A namespace belongs to a thread, and this one ends here.
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(place.as_fd(), kind).unwrap();
                work()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Cuts the wire.
    pub(crate) fn cut(&self, cut: Cut) {
        let Self {
            namespace,
            wire,
            host,
            node,
        } = self;
        if matches!(cut, Cut::Silent | Cut::ToNode) {
            must(&format!(
                "neigh replace {node} lladdr {NOBODY} dev {wire} nud permanent"
            ));
        }
        if matches!(cut, Cut::Silent | Cut::FromNode) {
            must(&format!(
                "-n {namespace} neigh replace {host} lladdr {NOBODY} dev eth0 nud permanent"
            ));
        }
        if cut == Cut::Unplugged {
            must(&format!("link set {wire} down"));
        }
    }

    /// Mends it, however it was cut.
    pub(crate) fn heal(&self) {
        let Self {
            namespace,
            wire,
            host,
            node,
        } = self;
        must(&format!("link set {wire} up"));
        // Not there where this direction was whole.
        let _ = ip(&format!("neigh delete {node} dev {wire}"));
        let _ = ip(&format!("-n {namespace} neigh delete {host} dev eth0"));
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // The namespace itself lives on while a process is in it; the wire doesn't.
        let _ = ip(&format!("link delete {}", self.wire));
        let _ = ip(&format!("netns delete {}", self.namespace));
    }
}

/// Whether a process has bytes at its port that it hasn't read; it may be in any namespace.
pub(crate) fn has_unread(pid: u32, port: u16) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    table.lines().skip(1).any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let here = words[1].ends_with(&format!(":{port:04X}"));
        here && words[3] == "01" && !words[4].ends_with(":00000000")
    })
}
