//! Network namespace of a node, with a veth pair to this host, and ways to cut it.
//!
//! In a silent cut the sender has an ARP entry of a neighbour that doesn't exist: packets leave and are lost, as
//! behind a switch without power. Neither end gets an error, so connections stay half open.

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

/// MAC address that no interface has.
const UNKNOWN_MAC: &str = "02:00:00:00:00:fe";
/// Prefix of the namespaces of all runs; the pid of the run and a number follow.
const PREFIX: &str = "cychaos-";

/// Network fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Packets are lost in both directions.
    Silent,
    /// Packets to the node are lost.
    ToNode,
    /// Packets from the node are lost.
    FromNode,
    /// The link is down, and both ends see it.
    Unplugged,
}

/// Namespace and its veth pair; both are removed when dropped.
pub(crate) struct Segment {
    namespace: String,
    link: String,
    /// Address of this host.
    pub(crate) host: String,
    /// Address of the node.
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

fn link_name(pid: &str, number: &str) -> String {
    format!("cyc{pid}n{number}")
}

/// Removes the namespaces of killed runs, with the processes in them.
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
            let _ = ip(&format!("link delete {}", link_name(pid, number)));
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

impl Segment {
    /// Creates a namespace; `number` is unique in this process.
    pub(crate) fn new(number: u8) -> Self {
        let pid = std::process::id();
        // From the range that is reserved for network tests (RFC 2544).
        let (net, low) = (pid % 256, u32::from(number) * 4);
        let segment = Self {
            namespace: format!("{PREFIX}{pid}-{number}"),
            link: link_name(&pid.to_string(), &number.to_string()),
            host: format!("198.18.{net}.{}", low + 1),
            node: format!("198.18.{net}.{}", low + 2),
        };
        let Self {
            namespace,
            link,
            host,
            node,
        } = &segment;
        must(&format!("netns add {namespace}"));
        must(&format!(
            "link add {link} type veth peer name eth0 netns {namespace}"
        ));
        must(&format!("address add {host}/30 dev {link}"));
        must(&format!("link set {link} up"));
        must(&format!("-n {namespace} address add {node}/30 dev eth0"));
        must(&format!("-n {namespace} link set eth0 up"));
        must(&format!("-n {namespace} link set lo up"));
        segment
    }

    /// Runs `work` in the namespace, and the processes that it starts. Only the network differs, so podman finds
    /// everything else.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let place = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
                // A namespace belongs to a thread, which ends here.
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(place.as_fd(), kind).unwrap();
                work()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Cuts the network.
    pub(crate) fn cut(&self, cut: Cut) {
        let Self {
            namespace,
            link,
            host,
            node,
        } = self;
        if matches!(cut, Cut::Silent | Cut::ToNode) {
            must(&format!(
                "neigh replace {node} lladdr {UNKNOWN_MAC} dev {link} nud permanent"
            ));
        }
        if matches!(cut, Cut::Silent | Cut::FromNode) {
            must(&format!(
                "-n {namespace} neigh replace {host} lladdr {UNKNOWN_MAC} dev eth0 nud permanent"
            ));
        }
        if cut == Cut::Unplugged {
            must(&format!("link set {link} down"));
        }
    }

    /// Repairs any cut.
    pub(crate) fn heal(&self) {
        let Self {
            namespace,
            link,
            host,
            node,
        } = self;
        must(&format!("link set {link} up"));
        // Missing where this direction was not cut.
        let _ = ip(&format!("neigh delete {node} dev {link}"));
        let _ = ip(&format!("-n {namespace} neigh delete {host} dev eth0"));
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // The namespace stays while a process is in it; the veth pair doesn't.
        let _ = ip(&format!("link delete {}", self.link));
        let _ = ip(&format!("netns delete {}", self.namespace));
    }
}

/// Whether a process in any namespace has unread bytes at its port.
pub(crate) fn has_unread(pid: u32, port: u16) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    table.lines().skip(1).any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let here = words[1].ends_with(&format!(":{port:04X}"));
        here && words[3] == "01" && !words[4].ends_with(":00000000")
    })
}
