//! Isolation of a sandbox: compares init's view of a container with what was asked for.
//!
//! Podman is given every setting that closes a container (see [`containers_conf`](super::containers_conf)), but
//! another version of podman, a wrapper around it, a hook or a runtime may ignore them. So the result is checked.
//! Each finding names the setting that mostly causes it.

use crate::sandbox_init::{self, GPU_HOOK_VARIABLE, view::View};

/// Namespaces that every sandbox has of its own, each with its setting.
const NAMESPACES: [(&str, &str); 6] = [
    ("pid", "pidns"),
    ("ipc", "ipcns"),
    ("uts", "utsns"),
    ("net", "netns"),
    ("cgroup", "cgroupns"),
    ("mnt", "none; see its runtime"),
];
/// Namespace that a rootless podman has for all its containers, in which root has no rights on the host.
const USER: (&str, &str) = ("user", "userns");

/// Variables that podman sets in every container.
const VARIABLES: [&str; 6] = [
    "HOME",
    "HOSTNAME",
    GPU_HOOK_VARIABLE,
    "PATH",
    "TERM",
    "container",
];
/// Mounts of every sandbox: podman's and ours.
const MOUNTS: [&str; 16] = [
    "/",
    "/dev",
    "/dev/full",
    "/dev/mqueue",
    "/dev/null",
    "/dev/pts",
    "/dev/random",
    "/dev/shm",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
    "/etc/hostname",
    "/etc/hosts",
    "/run/.containerenv",
    sandbox_init::PATH,
    sandbox_init::WORKSPACE,
];
/// Directories of the kernel's own file systems, and the kinds that may be mounted there. A runtime mounts some and
/// hides others with them; where it runs in a container itself, it can only pass on the mounts of that.
const KERNEL: [(&str, &[&str]); 2] = [
    (
        "/proc",
        &[
            "proc",
            "tmpfs",
            "devtmpfs",
            "binfmt_misc",
            "autofs",
            "fuse.lxcfs",
        ],
    ),
    (
        "/sys",
        &[
            "sysfs",
            "tmpfs",
            "devtmpfs",
            "cgroup",
            "cgroup2",
            "bpf",
            "configfs",
            "debugfs",
            "efivarfs",
            "fuse.lxcfs",
            "fusectl",
            "nfsd",
            "pstore",
            "resctrl",
            "securityfs",
            "selinuxfs",
            "smackfs",
            "tracefs",
        ],
    ),
];
/// Mounts that podman adds on a host in FIPS mode.
const FIPS_MOUNTS: [&str; 2] = ["/run/secrets", "/etc/crypto-policies"];
/// Entries of `/dev` in every sandbox.
const DEVICES: [&str; 16] = [
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
    "stdin", "stdout", "tty", "urandom", "zero",
];
/// Privileges: a line of `/proc/self/status`, its value in a sandbox without leading zeros, the finding where it
/// differs, and the setting.
const PRIVILEGES: [(&str, &str, &str, &str); 3] = [
    ("CapBnd", "", "capabilities", "default_capabilities"),
    (
        "NoNewPrivs",
        "1",
        "a way to new privileges",
        "no_new_privileges",
    ),
    ("Seccomp", "2", "no seccomp filter", "seccomp_profile"),
];

/// Finding of an init that has no PID namespace of its own, and refused to run.
pub(super) fn shared_pid_namespace() -> String {
    let (name, setting) = NAMESPACES[0];
    shared(name, setting)
}

/// Findings in a sandbox with this view; `ours` are the namespaces of this process.
pub(super) fn findings(view: &View, ours: &[(String, String)], rootless: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, setting) in NAMESPACES.into_iter().chain(rootless.then_some(USER)) {
        let of = |list: &[(String, String)]| {
            let found = list.iter().find(|(kind, _)| kind == name);
            found.map(|(_, id)| id.clone())
        };
        // A kernel without such namespaces has nothing to isolate.
        if let Some(own) = of(ours)
            && of(&view.namespaces).is_none_or(|inside| inside == own)
        {
            found.push(shared(name, setting));
        }
    }
    for (kind, place) in &view.mounts {
        if !is_expected(kind, place) {
            found.push(format!(
                "{place} is mounted in them (containers.conf: volumes or mounts; mounts.conf; an OCI hook)"
            ));
        }
    }
    for name in &view.variables {
        if !VARIABLES.contains(&name.as_str()) {
            found.push(format!(
                "they have the variable {name} (containers.conf: env)"
            ));
        }
    }
    for name in &view.devices {
        if !DEVICES.contains(&name.as_str()) {
            found.push(format!(
                "they have /dev/{name} (containers.conf: devices; an OCI hook)"
            ));
        }
    }
    for (name, closed, what, setting) in PRIVILEGES {
        let line = view.privileges.iter().find(|(line, _)| line == name);
        if line.is_some_and(|(_, value)| value.trim_start_matches('0') != closed) {
            found.push(format!("they have {what} (containers.conf: {setting})"));
        }
    }
    found
}

fn shared(name: &str, setting: &str) -> String {
    format!("they share the node's {name} namespace (containers.conf: {setting})")
}

fn is_expected(kind: &str, place: &str) -> bool {
    let below = |directory: &str| {
        let rest = place.strip_prefix(directory);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let of_kernel =
        |(directory, kinds): &(&str, &[&str])| below(directory) && kinds.contains(&kind);
    MOUNTS.contains(&place)
        || KERNEL.iter().any(of_kernel)
        || (FIPS_MOUNTS.iter().any(|directory| below(directory)) && is_fips())
}

fn is_fips() -> bool {
    std::fs::read_to_string("/proc/sys/crypto/fips_enabled").is_ok_and(|flag| flag.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        list.iter().map(owned).collect()
    }

    fn namespaces(id: &str) -> Vec<(String, String)> {
        let names = NAMESPACES.iter().chain([&USER]);
        names
            .map(|(name, _)| ((*name).to_owned(), id.to_owned()))
            .collect()
    }

    /// View in a sandbox of podman 4.3, rootless.
    fn closed() -> View {
        View {
            namespaces: namespaces("[2]"),
            mounts: pairs(&[
                ("overlay", "/"),
                ("proc", "/proc"),
                ("sysfs", "/sys"),
                ("devtmpfs", "/dev/null"),
                ("cgroup", "/sys/fs/cgroup/pids"),
                ("devtmpfs", "/proc/kcore"),
                ("ext4", "/etc/hosts"),
                ("ext4", "/.cynode-init"),
            ]),
            variables: VARIABLES.map(str::to_owned).to_vec(),
            devices: DEVICES.map(str::to_owned).to_vec(),
            privileges: pairs(&[("CapBnd", "0000"), ("NoNewPrivs", "1"), ("Seccomp", "2")]),
        }
    }

    fn assert_found(view: &View, expected: &[&str]) {
        let found = findings(view, &namespaces("[1]"), true);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{expected} in {found}");
        }
    }

    #[test]
    fn isolated_sandbox_has_no_findings() {
        assert_found(&closed(), &[]);
    }

    #[test]
    fn each_shared_namespace_names_its_setting() {
        for (n, (name, setting)) in NAMESPACES.into_iter().chain([USER]).enumerate() {
            let mut view = closed();
            view.namespaces[n].1 = "[1]".to_owned();
            assert_found(&view, &[setting]);
            view.namespaces.remove(n);
            assert_found(&view, &[name]);
        }
        let rootful = findings(&closed(), &namespaces("[2]"), false);
        assert!(
            !rootful.iter().any(|found| found.contains("userns")),
            "{rootful:?}"
        );
    }

    #[test]
    fn unexpected_mounts_variables_and_devices_are_found() {
        let mut view = closed();
        view.mounts.extend(pairs(&[
            ("ext4", "/leak"),
            ("ext4", "/proc/leak"),
            ("tmpfs", "/procs"),
        ]));
        view.variables.push("LEAK".to_owned());
        view.devices.push("kvm".to_owned());
        let settings = ["/leak", "/proc/leak", "/procs", "env", "/dev/kvm"];
        assert_found(&view, &settings);
    }

    #[test]
    fn extra_privileges_are_found() {
        let mut view = closed();
        view.privileges = pairs(&[("CapBnd", "0400"), ("NoNewPrivs", "0"), ("Seccomp", "0")]);
        assert_found(
            &view,
            &[
                "default_capabilities",
                "no_new_privileges",
                "seccomp_profile",
            ],
        );
    }
}
