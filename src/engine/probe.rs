//! Detection of what this host's podman can do, by running containers.
//!
//! Where cgroups or resource limits are unusual (LXC, small VMs, CI), the default runtime fails or podman's default
//! ulimits can't be set. An operator would have to write a `containers.conf` for that. Instead a probe container
//! runs ([`probe_container`](super::probe_container)) with each runtime and each set of ulimits, and the first
//! combination that works is kept.

use super::{
    Engine, EngineError, PodmanInfo, Program, RuntimeConfig, call, info::podman_info,
    probe_container::run_probe,
};
use crate::errors;
use rustix::process::{Resource, getrlimit};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

const IMAGE_CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Prefix of the names of probe containers.
pub(super) const PROBE_NAME_PREFIX: &str = "cynode-probe-";

/// The operator's choices; everything else is detected.
pub struct ProbeRequest {
    /// The podman to use.
    pub program: Program,
    /// OCI runtime that the operator insists on.
    pub runtime: Option<String>,
}

/// Files and owner of probe containers.
#[derive(Clone, Copy)]
pub struct ProbeEnv<'a> {
    /// Static copy of our binary, the init of a probe.
    pub init: &'a Path,
    /// Directory for the root of a probe.
    pub scratch: &'a Path,
    /// Node whose label a probe bears, so that the node's collection of orphans finds it; `None` for doctor.
    pub node_uuid: Option<&'a str>,
}

/// Asks podman for its description, and detects the settings with which containers run.
pub async fn probe(request: ProbeRequest, probe_env: ProbeEnv<'_>) -> Result<Engine, EngineError> {
    let info = podman_info(&request.program).await?;
    find_runtime_config(request, info, probe_env).await
}

/// Detects the settings with which a podman of this description runs containers. Fails with all that was tried.
pub async fn find_runtime_config(
    request: ProbeRequest,
    info: PodmanInfo,
    probe_env: ProbeEnv<'_>,
) -> Result<Engine, EngineError> {
    let began = Instant::now();
    let (mut tried, mut hung, mut not_isolated) = (Vec::new(), Vec::new(), None);
    for config in candidate_configs(request.runtime, can_raise_limits()) {
        if hung.contains(&config.runtime) {
            // Other resource limits make no difference.
            continue;
        }
        let engine = Engine::new(request.program.clone(), info.clone(), config.clone());
        let Err(error) = run_probe(&engine, probe_env, None).await else {
            tracing::info!(
                version = engine.info.version,
                rootless = engine.info.rootless,
                runtime = engine.runtime_name(),
                ulimits = config.ulimits.join(" "),
                millis = began.elapsed().as_millis() as u64,
                "podman works"
            );
            return Ok(engine);
        };
        tracing::debug!(
            runtime = engine.runtime_name(),
            ulimits = config.ulimits.join(" "),
            error = errors::chain(&error),
            "podman can't run containers with these settings"
        );
        tried.push(attempt_line(&config, &error));
        match error {
            EngineError::TimedOut { .. } => hung.push(config.runtime),
            // Containers run, so this says more than the failure of other settings.
            EngineError::NotIsolated { .. } => {
                not_isolated.get_or_insert(error);
            }
            _ => {}
        }
    }
    Err(not_isolated.unwrap_or_else(|| EngineError::NoRuntimeWorks(tried.join("\n"))))
}

fn attempt_line(config: &RuntimeConfig, error: &EngineError) -> String {
    const DEFAULT: &str = "(podman's own)";
    let runtime = config.runtime.as_deref().unwrap_or(DEFAULT);
    let ulimits = match config.ulimits.join(" ") {
        none if none.is_empty() => DEFAULT.to_owned(),
        ulimits => ulimits,
    };
    format!("  runtime {runtime}, ulimits {ulimits}: {error}")
}

/// Settings to try, those first that are likely to work; a runtime that the operator chose is the only one.
///
/// Podman's own limits exceed those of this process, mostly. Root without `CAP_SYS_RESOURCE` can't set such limits, so
/// that its own are tried first: each container that fails delays the start of a node.
fn candidate_configs(runtime: Option<String>, can_raise_limits: bool) -> Vec<RuntimeConfig> {
    let runtimes = match runtime {
        Some(runtime) => vec![Some(runtime)],
        None => vec![None, Some("crun".to_owned()), Some("runc".to_owned())],
    };
    let mut ulimits = [Vec::new(), own_ulimits()];
    if !can_raise_limits {
        ulimits.reverse();
    }
    let of_runtime = |runtime: Option<String>| {
        ulimits.clone().map(|ulimits| RuntimeConfig {
            runtime: runtime.clone(),
            ulimits,
        })
    };
    runtimes.into_iter().flat_map(of_runtime).collect()
}

/// Whether podman can give a container higher limits than this process has. Rootless podman doesn't try.
fn can_raise_limits() -> bool {
    /// Number of the capability in capabilities(7).
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    !rustix::process::geteuid().is_root()
        || effective.is_none_or(|mask| mask >> CAP_SYS_RESOURCE & 1 == 1)
}

/// Hard limits of this process, which podman can always give to a container. By default it asks for more, which
/// fails without `CAP_SYS_RESOURCE`.
fn own_ulimits() -> Vec<String> {
    let hard =
        |resource, ceiling: u64| getrlimit(resource).maximum.unwrap_or(u64::MAX).min(ceiling);
    // Podman lowers its own limit of processes to this before it starts a container.
    let pid_max = fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(32_768);
    let files = hard(Resource::Nofile, 1_048_576);
    let processes = hard(Resource::Nproc, pid_max);
    vec![
        format!("nofile={files}:{files}"),
        format!("nproc={processes}:{processes}"),
    ]
}

/// Checks that podman still does what jobs need: finds images and runs containers.
pub(super) async fn health_check(
    engine: &Engine,
    probe_env: ProbeEnv<'_>,
) -> Result<(), EngineError> {
    // Not as one of the short calls, all of which may hang.
    let exists = ["image", "exists", "localhost/cynode-probe"];
    match call(&engine.program, &exists, IMAGE_CALL_TIMEOUT, |_| ()).await {
        // The image doesn't exist; a podman that works says so.
        Ok(_) | Err(EngineError::Failed { .. }) => run_probe(engine, probe_env, None).await,
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_settings_are_tried_first() {
        let has_ulimits = |can_raise| {
            let configs = candidate_configs(Some("runc".to_owned()), can_raise);
            configs
                .iter()
                .map(|config| !config.ulimits.is_empty())
                .collect::<Vec<_>>()
        };
        assert_eq!(has_ulimits(true), [false, true]);
        assert_eq!(has_ulimits(false), [true, false]);
    }

    #[test]
    fn podmans_runtime_is_tried_before_others() {
        let runtimes = candidate_configs(None, false)
            .into_iter()
            .map(|config| config.runtime);
        let named = |name: &str| Some(name.to_owned());
        let expected = [
            None,
            None,
            named("crun"),
            named("crun"),
            named("runc"),
            named("runc"),
        ];
        assert_eq!(runtimes.collect::<Vec<_>>(), expected);
    }
}
