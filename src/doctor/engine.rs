//! Podman: whether it is there, whether it runs containers here, and what holds them.

use super::{Check, scratch::Scratch};
use crate::{
    cli,
    engine::{Engine, EngineError, PodmanInfo, Program, RuntimeConfig, info, probe},
};
use std::{io, path::Path};

/// Before this one, too much of what sandboxes rely on is missing or different.
const MIN_PODMAN_MAJOR: u32 = 4;

/// What was found out about podman, for several checks.
pub(super) struct PodmanFindings {
    /// What it calls its version.
    version: Result<String, EngineError>,
    /// What it says of itself.
    info: Result<PodmanInfo, EngineError>,
    /// A way to run containers; not looked for where podman doesn't say what it is.
    engine: Option<Result<Engine, EngineError>>,
    /// Whether the operator named a runtime.
    runtime_is_named: bool,
}

/// Asks podman, and has it run a container the way a node would.
pub(super) async fn inspect(
    podman: &cli::PodmanFlags,
    scratch: Result<&Scratch, &io::Error>,
) -> PodmanFindings {
    let plain = Program::plain(podman.program());
    let version = info::podman_version(&plain).await;
    // As a node would, with settings of our own, where there is a place for them.
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
    PodmanFindings {
        version,
        info,
        engine,
        runtime_is_named: podman.engine_runtime.is_some(),
    }
}

impl PodmanFindings {
    /// An engine that runs containers.
    pub(super) fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()?.as_ref().ok()
    }

    /// Whether it runs without root; a guess by our own user where it can't be asked.
    pub(super) fn rootless(&self) -> bool {
        self.info.as_ref().map_or_else(
            |_| !rustix::process::geteuid().is_root(),
            |info| info.rootless,
        )
    }

    /// Where it keeps images.
    pub(super) fn graph_root(&self) -> Option<&Path> {
        self.info.as_ref().ok().map(|info| &*info.graph_root)
    }

    /// Whether there is a podman, and whether it is new enough.
    pub(super) fn version_check(&self) -> Check {
        const NAME: &str = "engine";
        match &self.version {
            Ok(version) => version_verdict(version),
            Err(EngineError::NotStarted { program, source }) => Check::fail(
                NAME,
                format!("{program:?} can't be started: {source}"),
                "install podman (apt-get install podman, or dnf install podman), or name it with --engine",
            ),
            Err(error) => Check::fail(
                NAME,
                error.to_string(),
                "see what it says by itself (podman --version), or name another with --engine",
            ),
        }
    }

    /// Whether a container runs.
    pub(super) fn sandbox_check(&self) -> Check {
        const NAME: &str = "sandbox";
        let error = match (&self.version, &self.info, &self.engine) {
            (Err(_), ..) => {
                return Check::fail(NAME, "not tried: no podman answers", "mend engine first");
            }
            (_, Ok(info), Some(Ok(engine))) => {
                let detail = describe_runtime(engine.runtime_config(), info, self.runtime_is_named);
                return Check::ok(NAME, detail);
            }
            (_, Err(error), _) | (_, _, Some(Err(error))) => error,
            (_, Ok(_), None) => return Check::fail(NAME, "not tried", "mend engine first"),
        };
        let mend = match error {
            EngineError::Io(_) => {
                "give cynode a place to write: another --data-dir, or TMPDIR; what it says above may tell more"
            }
            EngineError::NotIsolated { .. } => {
                "what is named in brackets mostly does it; see /etc/containers, OCI hooks, and what stands in for podman (--engine)"
            }
            EngineError::InvalidSettings { .. } => {
                "correct the file that is named above; see: man containers.conf"
            }
            EngineError::TimedOut { .. } => {
                "end the podman that hangs, which the command above shows; where nothing but a restart of the machine helps, see what the kernel says of its disk (dmesg)"
            }
            _ => {
                "put right what podman says above, the first line being its own choice of runtime;\n\
                 without root mend rootless first, then run: podman system migrate\n\
                 where a runtime is missing: apt-get install crun, or runc"
            }
        };
        Check::fail(NAME, error.to_string(), mend)
    }

    /// What limits the resources of containers.
    pub(super) fn cgroups_check(&self) -> Check {
        match &self.info {
            Ok(info) => cgroups_verdict(&info.cgroup_version, &info.cgroup_manager, info.rootless),
            Err(_) => Check::warn(
                "cgroups",
                "unknown: podman can't be asked",
                "mend engine and sandbox first",
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
            format!("podman {version}, which cynode is not tried with"),
            format!(
                "upgrade to podman {MIN_PODMAN_MAJOR}.0 or newer, from a newer release of this system"
            ),
        ),
        None => Check::warn(
            NAME,
            format!("it answers, but {version:?} is no version of podman"),
            "name podman itself with --engine",
        ),
    }
}

/// The way, and what of it podman would not have done by itself.
fn describe_runtime(config: &RuntimeConfig, info: &PodmanInfo, runtime_is_named: bool) -> String {
    let runtime = config.runtime.as_deref().unwrap_or(&info.default_runtime);
    let ulimits = if config.ulimits.is_empty() {
        "podman's own".to_owned()
    } else {
        config.ulimits.join(" ")
    };
    let mut text = format!("a container ran; runtime {runtime}, ulimits {ulimits}");
    let mut own_fail = Vec::new();
    if config.runtime.is_some() && !runtime_is_named {
        own_fail.push(format!("runtime ({})", info.default_runtime));
    }
    if !config.ulimits.is_empty() {
        own_fail.push("ulimits".to_owned());
    }
    if !own_fail.is_empty() {
        text += &format!(
            "; podman's own {} won't do here, which a node finds out by itself",
            own_fail.join(" and ")
        );
    }
    text
}

fn cgroups_verdict(version: &str, manager: &str, rootless: bool) -> Check {
    const NAME: &str = "cgroups";
    let whose = if manager.is_empty() {
        String::new()
    } else {
        format!(", manager {manager}")
    };
    let weak = if rootless {
        "limits of resources can't be enforced without root"
    } else {
        "limits of resources can be enforced by root only"
    };
    match version {
        "v2" => Check::ok(NAME, format!("v2{whose}")),
        "" => Check::warn(
            NAME,
            "podman doesn't say which version they have",
            "upgrade podman",
        ),
        // Podman calls the hybrid layout v1, too.
        _ => Check::warn(
            NAME,
            format!("{version}, or a hybrid{whose}; {weak}"),
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line; in a container, mend its host",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

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
    fn rootless_limits_need_cgroups_v2() {
        assert_eq!(
            cgroups_verdict("v2", "systemd", true).detail,
            "v2, manager systemd"
        );
        for rootless in [true, false] {
            assert_eq!(
                cgroups_verdict("v1", "cgroupfs", rootless).status,
                Status::Warn
            );
        }
        assert!(
            cgroups_verdict("v1", "", true)
                .detail
                .contains("without root")
        );
        assert_eq!(cgroups_verdict("", "", true).status, Status::Warn);
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
        let told = |runtime: Option<&str>, ulimits: &[&str], named| {
            let config = RuntimeConfig {
                runtime: runtime.map(str::to_owned),
                ulimits: ulimits.iter().map(|&limit| limit.to_owned()).collect(),
            };
            describe_runtime(&config, &info, named)
        };
        let plain = "a container ran; runtime crun, ulimits podman's own";
        assert_eq!(told(None, &[], false), plain);
        assert!(told(Some("runc"), &[], false).contains("runtime runc"));
        assert!(told(Some("runc"), &[], false).contains("podman's own runtime (crun) won't do"));
        assert!(!told(Some("runc"), &[], true).contains("won't"));
        assert!(
            told(Some("runc"), &["nofile=1:1"], false)
                .contains("ulimits nofile=1:1; podman's own runtime (crun) and ulimits won't")
        );
    }
}
