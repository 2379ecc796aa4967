//! Start of a sandbox, and the question whose fault it is when podman refuses it.
//!
//! An image that can't be run ends its job for good; a failure of podman's is retried. They are distinguished
//! by [`Engine::probe_without_image`] and [`Engine::check_image_mount`]. The second start that this takes is
//! as good as the first, so a passing failure of podman's costs the job only the time.
//!
//! [`Engine::probe_without_image`]: crate::engine::Engine::probe_without_image
//! [`Engine::check_image_mount`]: crate::engine::Engine::check_image_mount

use super::{
    Exec, OutputSink, SandboxConfig,
    exit::SandboxExit,
    stop::Stops,
    supervisor::{ContainerCleanup, run_container},
};
use crate::engine::{EngineError, is_same_failure, probe::ProbeEnv};

/// Runs a command in a sandbox of its own, to its end or to a stop. Fails where no container could be started.
pub(crate) async fn run(
    config: &SandboxConfig,
    exec: &Exec,
    sink: &dyn OutputSink,
    stops: &Stops,
) -> Result<(SandboxExit, ContainerCleanup), EngineError> {
    let (exit, mut cleanup) = run_container(config, exec, sink, stops).await?;
    let SandboxExit::Refused(first) = exit else {
        return Ok((exit, cleanup));
    };
    tracing::warn!(sandbox = %config.id, error = first, "podman refused to start the sandbox");
    // The second container has the same name.
    if !cleanup.wait_until_removed().await {
        tracing::warn!(sandbox = %config.id, "container is still there; starting no second one");
        return Ok((SandboxExit::EngineFailed(first), cleanup));
    }
    let checked = tokio::select! {
        checked = check_podman(config) => checked,
        reason = stops.requested() => return Ok((SandboxExit::Stopped(reason), cleanup)),
    };
    let checked = match checked {
        Ok(()) => tokio::select! {
            checked = config.engine.check_image_mount(&config.image_id) => checked,
            reason = stops.requested() => {
                unmount_image(config).await;
                return Ok((SandboxExit::Stopped(reason), cleanup));
            }
        },
        failed => failed,
    };
    if let Err(error) = checked {
        tracing::warn!(%error, "podman cannot start an empty container either");
        return Ok((SandboxExit::EngineFailed(first), cleanup));
    }
    let (exit, cleanup) = run_container(config, exec, sink, stops).await?;
    let exit = match exit {
        SandboxExit::Refused(second) if is_same_failure(&first, &second) => {
            SandboxExit::ImageNotRunnable(second)
        }
        SandboxExit::Refused(second) => SandboxExit::EngineFailed(second),
        exit => exit,
    };
    Ok((exit, cleanup))
}

/// Checks that podman starts a container without the image.
async fn check_podman(config: &SandboxConfig) -> Result<(), EngineError> {
    let env = ProbeEnv {
        init: &config.init,
        scratch: &config.scratch,
        node_uuid: Some(&config.node_uuid),
    };
    config
        .engine
        .probe_without_image(env, &config.workspace)
        .await
}

/// Unmounts an image whose mount was cut off.
async fn unmount_image(config: &SandboxConfig) {
    if let Err(error) = config.engine.unmount_image(&config.image_id).await {
        tracing::debug!(%error, "image can't be unmounted");
    }
}
