//! Limits of a container's processors, memory and processes: podman's flags, and the limits that this host can enforce.
//!
//! A flag that podman takes need not have an effect: without root and with cgroup v1 podman drops limits with a warning,
//! and a user may have been delegated some controllers and not others. So at its start a node runs a container with all
//! limits, in which our own binary reads what holds for it ([`list_limits`]); where one is missing, each is tried
//! alone, for its reason.

use super::{
    Engine,
    container::{entrypoint_arg, sandbox_args},
    probe::PROBE_NAME_PREFIX,
    probe_container::{make_root, remove_root},
};
use crate::api::{jobs::resources::Cpus, size::ByteSize};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// First argument that makes the binary list the limits that hold for it, inside a container.
pub const LIST_LIMITS_ARGUMENT: &str = "__list-limits";

const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Mount point of control groups inside a container.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Values that no container has by accident.
const PROBE_MILLI_CPUS: u64 = 510;
const PROBE_MEMORY_BYTES: u64 = 77 << 20;
const PROBE_PIDS: u32 = 77;

/// Limit that needs the kernel's control groups.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LimitKind {
    /// Share of the processors.
    Cpus,
    /// Memory, swap included.
    Memory,
    /// Number of processes and threads.
    Pids,
}

/// Limits of one container; without a value podman's default holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Share of the processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory, swap included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Number of processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Size of `/dev/shm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
}

/// Limits that this host can't enforce, each with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitSupport {
    faults: BTreeMap<LimitKind, String>,
}

impl LimitKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpus, Self::Memory, Self::Pids];

    /// Name of the field that asks for the limit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// Name of the controller that enforces the limit.
    const fn controller(self) -> &'static str {
        match self {
            Self::Cpus => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

impl Limits {
    /// Podman's arguments.
    pub(super) fn args(&self) -> Vec<String> {
        let mut list = Vec::new();
        if let Some(cpus) = self.cpus {
            // A quota, and no set of processors: the job may run on any, for its share of the time.
            list.push(format!("--cpus={cpus}"));
        }
        if let Some(ByteSize(memory)) = self.memory {
            list.push(format!("--memory={memory}b"));
            // Memory and swap together. By default podman allows as much swap again.
            list.push(format!("--memory-swap={memory}b"));
        }
        if let Some(pids) = self.pids {
            // In place of podman's own limit, of 2048.
            list.push(format!("--pids-limit={pids}"));
        }
        if let Some(ByteSize(size)) = self.shm_size {
            // In place of 64 MiB, with which workers of a training that share tensors fail. Counts as memory.
            list.push(format!("--shm-size={size}b"));
        }
        list
    }

    /// Kinds of limits that need control groups.
    fn kinds(&self) -> impl Iterator<Item = LimitKind> {
        let given = [
            (LimitKind::Cpus, self.cpus.is_some()),
            (LimitKind::Memory, self.memory.is_some()),
            (LimitKind::Pids, self.pids.is_some()),
        ];
        let given = given.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(kind, _)| kind)
    }

    /// Limits to try: those of these kinds.
    fn probe(kinds: &[LimitKind]) -> Self {
        let has = |kind| kinds.contains(&kind);
        Self {
            cpus: Cpus::new(PROBE_MILLI_CPUS as f64 / 1000.0).filter(|_| has(LimitKind::Cpus)),
            memory: has(LimitKind::Memory).then_some(ByteSize(PROBE_MEMORY_BYTES)),
            pids: has(LimitKind::Pids).then_some(PROBE_PIDS),
            shm_size: None,
        }
    }
}

impl LimitSupport {
    /// Support of all limits but one.
    #[cfg(test)]
    pub(crate) fn without(kind: LimitKind, reason: &str) -> Self {
        Self {
            faults: BTreeMap::from([(kind, reason.to_owned())]),
        }
    }

    /// Reason for which a container with these limits must not be started; `None` where all can be enforced.
    pub fn refusal(&self, limits: &Limits) -> Option<String> {
        let missing = limits
            .kinds()
            .find_map(|kind| self.faults.get_key_value(&kind));
        let Some((kind, reason)) = missing else {
            return self.shm_refusal(limits.shm_size?);
        };
        let field = kind.as_str();
        Some(format!(
            "this node can't enforce the limit {field}: {reason}; run the task without {field}, or on another node"
        ))
    }

    /// Reason for which `/dev/shm` may not be so large: where memory can't be limited, nothing else bounds what is in it.
    fn shm_refusal(&self, size: ByteSize) -> Option<String> {
        let info = rustix::system::sysinfo();
        let total = info.totalram.saturating_mul(info.mem_unit.into());
        let most = ByteSize(total / 2);
        (!self.has(LimitKind::Memory) && size.0 > most.0).then(|| {
            format!(
                "this node can't enforce the limit memory, so shm_size can be at most half of its memory ({most}); ask for less, or run the task on another node"
            )
        })
    }

    /// Limits that can't be enforced, each with the reason.
    pub fn faults(&self) -> impl Iterator<Item = (LimitKind, &str)> {
        self.faults
            .iter()
            .map(|(kind, reason)| (*kind, reason.as_str()))
    }

    /// Whether this limit can be enforced.
    pub fn has(&self, kind: LimitKind) -> bool {
        !self.faults.contains_key(&kind)
    }
}

/// Finds out which limits this host can enforce. `init` is a static copy of our binary, `scratch` a directory for the
/// container's root.
pub async fn probe_limits(engine: &Engine, init: &Path, scratch: &Path) -> LimitSupport {
    let all = LimitKind::ALL;
    let held = held_limits(engine, init, scratch, &all)
        .await
        .unwrap_or_default();
    let mut support = LimitSupport::default();
    for kind in all {
        if held.contains(&kind) {
            continue;
        }
        let reason = match held_limits(engine, init, scratch, &[kind]).await {
            Ok(held) if held.contains(&kind) => continue,
            Ok(_) => missing_reason(kind, engine.info().rootless, &engine.info().cgroup_version),
            Err(error) => error,
        };
        support.faults.insert(kind, reason);
    }
    support
}

/// Runs a container with limits of these kinds, and returns those that hold in it. Fails with podman's message.
async fn held_limits(
    engine: &Engine,
    init: &Path,
    scratch: &Path,
    kinds: &[LimitKind],
) -> Result<Vec<LimitKind>, String> {
    let root = make_root(scratch.join("limits"))
        .await
        .map_err(|error| error.to_string())?;
    let name = format!("{PROBE_NAME_PREFIX}{}", uuid::Uuid::new_v4());
    let answer = async {
        let mut list = sandbox_args(engine, &name, init)?;
        // This init has no socket whose end would end it.
        list.push(format!("--timeout={}", LIST_TIMEOUT.as_secs()));
        list.extend(Limits::probe(kinds).args());
        list.push(entrypoint_arg(LIST_LIMITS_ARGUMENT));
        list.extend(["--rootfs".to_owned(), root.display().to_string()]);
        let arguments: Vec<&str> = list.iter().map(String::as_str).collect();
        engine.call(&arguments, LIST_TIMEOUT).await
    };
    let answer = answer.await;
    remove_root(root).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let is_held = |kind: &LimitKind| answer.lines().any(|line| line == kind.as_str());
    Ok(LimitKind::ALL.into_iter().filter(is_held).collect())
}

/// Reason for which a limit that podman took has no effect.
fn missing_reason(kind: LimitKind, rootless: bool, cgroup_version: &str) -> String {
    let controller = kind.controller();
    match (rootless, cgroup_version) {
        (true, "v2") => format!("the controller {controller} is not delegated to the node's user"),
        (true, _) => "podman without root limits nothing with cgroup v1".to_owned(),
        (false, _) => format!("the kernel offers no controller {controller} to containers"),
    }
}

/// Limits of the probe that hold for this process, one per line.
pub fn list_limits() -> String {
    let held = LimitKind::ALL
        .into_iter()
        .filter(|kind| is_held(Path::new(CGROUPS), *kind));
    held.map(|kind| format!("{}\n", kind.as_str())).collect()
}

/// Whether the control group at `top` has the probe's limit of this kind: by the files of cgroup v2, or of v1.
fn is_held(top: &Path, kind: LimitKind) -> bool {
    let read = |name: &str| fs::read_to_string(top.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    match kind {
        LimitKind::Cpus => {
            let v2 = || {
                let text = read("cpu.max")?;
                let (quota, period) = text.trim().split_once(' ')?;
                Some((quota.parse().ok()?, period.parse().ok()?))
            };
            let v1 = || {
                let quota = number("cpu/cpu.cfs_quota_us")?;
                Some((quota, number("cpu/cpu.cfs_period_us")?))
            };
            let share = v2().or_else(v1);
            share.is_some_and(|(quota, period): (u64, u64)| {
                quota * 1000 == period * PROBE_MILLI_CPUS
            })
        }
        LimitKind::Memory => {
            let (limit, has_swap_limit) = match number("memory.max") {
                Some(limit) => (Some(limit), number("memory.swap.max") == Some(0)),
                None => {
                    let limit = number("memory/memory.limit_in_bytes");
                    (limit, number("memory/memory.memsw.limit_in_bytes") == limit)
                }
            };
            // The kernel counts in pages.
            let is_near = |limit: u64| limit.abs_diff(PROBE_MEMORY_BYTES) < 1 << 20;
            limit.is_some_and(is_near) && (has_swap_limit || !has_swap())
        }
        LimitKind::Pids => {
            let limit = number("pids.max").or_else(|| number("pids/pids.max"));
            limit == Some(PROBE_PIDS.into())
        }
    }
}

/// Whether this host swaps at all; yes where it can't be told.
fn has_swap() -> bool {
    // Its first line is a heading.
    fs::read_to_string("/proc/swaps").map_or(true, |text| text.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_podman_flags() {
        assert!(Limits::default().args().is_empty());
        let limits = Limits {
            cpus: Cpus::new(1.5),
            memory: Some(ByteSize(1 << 30)),
            pids: Some(100),
            shm_size: Some(ByteSize(4096)),
        };
        assert_eq!(
            limits.args(),
            [
                "--cpus=1.5",
                "--memory=1073741824b",
                "--memory-swap=1073741824b",
                "--pids-limit=100",
                "--shm-size=4096b"
            ]
        );
    }

    #[test]
    fn refusal_names_limit_and_reason() {
        let memory = Limits {
            memory: Some(ByteSize(1 << 30)),
            shm_size: Some(ByteSize(1)),
            ..Limits::default()
        };
        let reason = missing_reason(LimitKind::Cpus, true, "v2");
        let support = LimitSupport::without(LimitKind::Cpus, &reason);
        assert_eq!(support.refusal(&memory), None);
        let cpus = Limits {
            cpus: Cpus::new(2.0),
            ..memory
        };
        let refusal = support.refusal(&cpus).unwrap();
        for text in [
            "the limit cpus",
            "cpu is not delegated",
            "without cpus",
            "another node",
        ] {
            assert!(refusal.contains(text), "{text}: {refusal}");
        }
    }

    #[test]
    fn large_shm_needs_limit_of_memory() {
        let shm = |size| Limits {
            shm_size: Some(ByteSize(size)),
            ..Limits::default()
        };
        let support = LimitSupport::without(LimitKind::Memory, "x");
        assert_eq!(support.refusal(&shm(1 << 20)), None);
        let refusal = support.refusal(&shm(1 << 50)).unwrap();
        assert!(refusal.contains("half of its memory"), "{refusal}");
        assert_eq!(LimitSupport::default().refusal(&shm(1 << 50)), None);
    }

    #[test]
    fn both_cgroup_versions_are_read() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let held = || {
            let kinds = LimitKind::ALL.into_iter();
            kinds
                .filter(|kind| is_held(home.path(), *kind))
                .collect::<Vec<_>>()
        };
        assert!(held().is_empty());
        write("cpu/cpu.cfs_quota_us", "51000\n");
        write("cpu/cpu.cfs_period_us", "100000\n");
        write("memory/memory.limit_in_bytes", "80740352\n");
        write("memory/memory.memsw.limit_in_bytes", "80740352\n");
        write("pids/pids.max", "77\n");
        assert_eq!(held(), LimitKind::ALL);
        write("cpu.max", "max 100000\n");
        write("pids.max", "max\n");
        write("memory.max", "max\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("cpu/cpu.cfs_quota_us", "-1\n");
        write("pids/pids.max", "max\n");
        assert!(held().is_empty());
        write("cpu.max", "51000 100000\n");
        write("pids.max", "77\n");
        write("memory.max", "80740352\n");
        write("memory.swap.max", "0\n");
        assert_eq!(held(), LimitKind::ALL);
    }
}
