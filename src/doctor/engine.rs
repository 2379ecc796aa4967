//! Podman: whether it is installed, runs containers here, and can limit their resources.

use super::{Check, scratch::Scratch};
use crate::{
    cli,
    engine::{
        Engine, EngineError, PodmanInfo, Program, RuntimeConfig, info,
        limits::{LimitSupport, probe_limits},
        probe,
    },
};
use std::{io, path::Path};

/// Oldest supported version: earlier ones lack flags that sandboxes need, or differ in them.
const MIN_PODMAN_MAJOR: u32 = 4;

const CGROUPS: &str = "cgroups";

/// Podman's answers, for several checks.
pub(super) struct PodmanFindings {
    /// Version.
    version: Result<String, EngineError>,
    /// Description of itself.
    info: Result<PodmanInfo, EngineError>,
    /// Engine that runs containers; `None` where podman doesn't describe itself.
    engine: Option<Result<Engine, EngineError>>,
    /// Limits that a container can have; `None` where none runs.
    limits: Option<LimitSupport>,
    /// Whether the operator named a runtime.
    runtime_is_named: bool,
}

/// Asks podman, and runs a container as a node would.
pub(super) async fn inspect(
    podman: &cli::PodmanFlags,
    scratch: Result<&Scratch, &io::Error>,
) -> PodmanFindings {
    let plain = Program::plain(podman.program());
    let version = info::podman_version(&plain).await;
    // With a settings file of ours, as a node does, where there is a directory for it.
    let program = match scratch {
        Ok(scratch) => Program::podman(podman.program(), scratch.dir()),
        Err(_) => Ok(plain),
    };
    let (program, info) = match program {
        Ok(program) => {
            let info = info::podman_info(&program).await;
            (program, info)
        }
        Err(error) => (Program::plain(podman.program()), Err(error)),
    };
    let request = probe::ProbeRequest {
        program,
        runtime: podman.engine_runtime.clone(),
    };
    let engine = match (&info, scratch) {
        (Err(_), _) => None,
        (Ok(info), Ok(scratch)) => {
            let probe_env = probe::ProbeEnv {
                init: scratch.init(),
                scratch: scratch.dir(),
                node_uuid: None,
            };
            Some(probe::find_runtime_config(request, info.clone(), probe_env).await)
        }
        (Ok(_), Err(error)) => {
            let error = io::Error::new(error.kind(), error.to_string());
            Some(Err(EngineError::Io(error)))
        }
    };
    let limits = match (&engine, scratch) {
        (Some(Ok(engine)), Ok(scratch)) => {
            Some(probe_limits(engine, scratch.init(), scratch.dir()).await)
        }
        _ => None,
    };
    PodmanFindings {
        version,
        info,
        engine,
        limits,
        runtime_is_named: podman.engine_runtime.is_some(),
    }
}

impl PodmanFindings {
    /// Engine that runs containers.
    pub(super) fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()?.as_ref().ok()
    }

    /// Whether podman runs without root; by this process's user where podman can't be asked.
    pub(super) fn rootless(&self) -> bool {
        self.info.as_ref().map_or_else(
            |_| !rustix::process::geteuid().is_root(),
            |info| info.rootless,
        )
    }

    /// Directory of images.
    pub(super) fn graph_root(&self) -> Option<&Path> {
        self.info.as_ref().ok().map(|info| &*info.graph_root)
    }

    /// Whether podman is installed and supported.
    pub(super) fn version_check(&self) -> Check {
        const NAME: &str = "engine";
        match &self.version {
            Ok(version) => version_verdict(version),
            Err(EngineError::NotStarted { program, source }) => Check::fail(
                NAME,
                format!("{program:?} can't be started: {source}; nodes need podman"),
                "install podman (apt-get install podman, or dnf install podman), or name it with --engine",
            ),
            Err(error) => Check::fail(
                NAME,
                format!("{error}; nodes can't use this podman"),
                "correct what podman --version reports, or name another podman with --engine",
            ),
        }
    }

    /// Whether a container runs.
    pub(super) fn sandbox_check(&self) -> Check {
        const NAME: &str = "sandbox";
        let error = match (&self.version, &self.info, &self.engine) {
            (Err(_), ..) => {
                return Check::fail(
                    NAME,
                    "not checked: podman does not answer",
                    "first fix what engine reports",
                );
            }
            (_, Ok(info), Some(Ok(engine))) => {
                let detail = describe_runtime(engine.runtime_config(), info, self.runtime_is_named);
                return Check::ok(NAME, detail);
            }
            (_, Err(error), _) | (_, _, Some(Err(error))) => error,
            (_, Ok(_), None) => {
                return Check::fail(NAME, "not checked", "first fix what engine reports");
            }
        };
        let fix = match error {
            EngineError::Io(_) => {
                "give cynode a directory that it can write to: --data-dir, or the variable TMPDIR"
            }
            EngineError::NotIsolated { .. } => {
                "change the settings in brackets (in /etc/containers), remove the OCI hook, or use podman itself (--engine)"
            }
            EngineError::InvalidSettings { .. } => {
                "correct the file that is named above (man containers.conf)"
            }
            EngineError::TimedOut { .. } => {
                "stop the podman that hangs, which the command above lists; if only a restart of the machine helps, look for disk errors in the kernel's log (dmesg)"
            }
            _ => {
                "correct what podman reports above; the first line is about its default runtime\n\
                 without root: first fix what rootless reports, then run: podman system migrate\n\
                 without a runtime: apt-get install crun, or apt-get install runc"
            }
        };
        Check::fail(NAME, error.to_string(), fix)
    }

    /// Whether the resources of containers can be limited.
    pub(super) fn cgroups_check(&self) -> Check {
        match (&self.info, &self.limits) {
            (Ok(info), Some(limits)) => cgroups_verdict(info, limits),
            (Ok(info), None) => Check::warn(
                CGROUPS,
                format!(
                    "{}; limits not checked, since no container runs",
                    layout(info)
                ),
                "first fix what sandbox reports",
            ),
            (Err(_), _) => Check::warn(
                CGROUPS,
                "unknown: podman does not answer",
                "first fix what engine and sandbox report",
            ),
        }
    }
}

fn version_verdict(version: &str) -> Check {
    const NAME: &str = "engine";
    let major = version
        .split('.')
        .next()
        .and_then(|n| n.parse::<u32>().ok());
    match major {
        Some(MIN_PODMAN_MAJOR..) => Check::ok(NAME, format!("podman {version}")),
        Some(_) => Check::warn(
            NAME,
            format!("podman {version} is older than cynode supports; sandboxes may fail"),
            format!(
                "upgrade to podman {MIN_PODMAN_MAJOR}.0 or newer, which may need a newer release of this system"
            ),
        ),
        None => Check::warn(
            NAME,
            format!("{version:?} is not a version of podman; sandboxes may fail"),
            "name podman itself with --engine",
        ),
    }
}

/// Settings with which a container ran, and those of podman's defaults that don't work here.
fn describe_runtime(config: &RuntimeConfig, info: &PodmanInfo, runtime_is_named: bool) -> String {
    let runtime = config.runtime.as_deref().unwrap_or(&info.default_runtime);
    let ulimits = if config.ulimits.is_empty() {
        "default ulimits".to_owned()
    } else {
        format!("ulimits {}", config.ulimits.join(" "))
    };
    let mut text = format!("a container ran with runtime {runtime} and {ulimits}");
    let mut failing = Vec::new();
    if config.runtime.is_some() && !runtime_is_named {
        failing.push(format!("runtime ({})", info.default_runtime));
    }
    if !config.ulimits.is_empty() {
        failing.push("ulimits".to_owned());
    }
    if !failing.is_empty() {
        text += &format!(
            "; podman's default {} can't be used here, and nodes avoid that",
            failing.join(" and ")
        );
    }
    text
}

/// Version and manager of the control groups. Podman reports the hybrid layout as v1, too.
fn layout(info: &PodmanInfo) -> String {
    let version = match info.cgroup_version.as_str() {
        "" => "of unknown version",
        "v2" => "v2",
        _ => "v1 or hybrid",
    };
    match info.cgroup_manager.as_str() {
        "" => version.to_owned(),
        manager => format!("{version}, manager {manager}"),
    }
}

fn cgroups_verdict(info: &PodmanInfo, limits: &LimitSupport) -> Check {
    let layout = layout(info);
    let faults: Vec<_> = limits.faults().collect();
    if faults.is_empty() {
        return Check::ok(CGROUPS, format!("{layout}; jobs can have limits"));
    }
    let missing: Vec<_> = faults
        .iter()
        .map(|(kind, reason)| format!("{} ({reason})", kind.as_str()))
        .collect();
    let detail = format!(
        "{layout}; jobs that ask for these limits are refused: {}",
        missing.join(", ")
    );
    let fix = match (info.rootless, info.cgroup_version.as_str()) {
        (true, "v2") => {
            "as root, write [Service] and Delegate=cpu cpuset io memory pids into /etc/systemd/system/user@.service.d/delegate.conf, \
             then run: systemctl daemon-reload; and log in again"
        }
        (true, _) => {
            "run the node as root, or boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line; in a container, change that on its host"
        }
        (false, _) => {
            "boot with cgroup_enable=memory swapaccount=1 systemd.unified_cgroup_hierarchy=1 on the kernel's command line; in a container, change that on its host"
        }
    };
    Check::warn(CGROUPS, detail, fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::Status, engine::limits::LimitKind};

    #[test]
    fn podman_4_or_newer_is_fine() {
        for (version, status) in [
            ("4.0.0", Status::Ok),
            ("4.3.1", Status::Ok),
            ("5.0.0-rc1", Status::Ok),
            ("12.1", Status::Ok),
            ("3.4.4", Status::Warn),
            ("", Status::Warn),
            ("(GNU coreutils)", Status::Warn),
        ] {
            assert_eq!(version_verdict(version).status, status, "{version}");
        }
    }

    #[test]
    fn missing_limits_are_named_with_fix() {
        let info = |version: &str, rootless| PodmanInfo {
            version: "4.3.1".to_owned(),
            rootless,
            graph_root: "/x".into(),
            graph_driver: "overlay".to_owned(),
            default_runtime: "crun".to_owned(),
            cgroup_version: version.to_owned(),
            cgroup_manager: "systemd".to_owned(),
        };
        let check = cgroups_verdict(&info("v1", false), &LimitSupport::default());
        assert_eq!(check.status, Status::Ok);
        assert_eq!(
            check.detail,
            "v1 or hybrid, manager systemd; jobs can have limits"
        );
        let missing = LimitSupport::without(LimitKind::Cpus, "it is not delegated");
        for (version, rootless, fix) in [
            ("v2", true, "Delegate=cpu"),
            ("v1", true, "as root"),
            ("v1", false, "cgroup_enable=memory"),
        ] {
            let check = cgroups_verdict(&info(version, rootless), &missing);
            assert_eq!(check.status, Status::Warn);
            assert!(
                check.detail.contains("cpus (it is not delegated)"),
                "{}",
                check.detail
            );
            assert!(check.fix.unwrap().contains(fix), "{version} {rootless}");
        }
    }

    #[test]
    fn non_default_podman_settings_are_explicit() {
        let info = PodmanInfo {
            version: "4.3.1".to_owned(),
            rootless: false,
            graph_root: "/x".into(),
            graph_driver: "overlay".to_owned(),
            default_runtime: "crun".to_owned(),
            cgroup_version: "v2".to_owned(),
            cgroup_manager: "systemd".to_owned(),
        };
        let describe = |runtime: Option<&str>, ulimits: &[&str], named| {
            let config = RuntimeConfig {
                runtime: runtime.map(str::to_owned),
                ulimits: ulimits.iter().map(|&limit| limit.to_owned()).collect(),
            };
            describe_runtime(&config, &info, named)
        };
        let plain = "a container ran with runtime crun and default ulimits";
        assert_eq!(describe(None, &[], false), plain);
        assert!(describe(Some("runc"), &[], false).contains("runtime runc"));
        assert!(
            describe(Some("runc"), &[], false)
                .contains("podman's default runtime (crun) can't be used")
        );
        assert!(!describe(Some("runc"), &[], true).contains("can't"));
        assert!(
            describe(Some("runc"), &["nofile=1:1"], false)
                .contains("ulimits nofile=1:1; podman's default runtime (crun) and ulimits can't")
        );
    }
}
