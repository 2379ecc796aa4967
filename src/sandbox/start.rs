//! Start of a sandbox, and the question whose fault it is when podman refuses it.
//!
//! An image that can't be run ends its job for good; a failure of podman's is retried. They are distinguished
//! by [`Engine::probe_without_image`] and [`Engine::check_image_mount`]. The second start that this takes is
//! as good as the first, so a passing failure of podman's costs the job only the time.
//!
//! [`Engine::probe_without_image`]: crate::engine::Engine::probe_without_image
//! [`Engine::check_image_mount`]: crate::engine::Engine::check_image_mount

use super::{
    Sandbox, SandboxConfig,
    cleanup::ContainerCleanup,
    exit::SandboxExit,
    stop::Stops,
    supervisor::{Driven, start_container},
};
use crate::engine::{EngineError, is_same_failure, probe::ProbeEnv};

/// Result of a start.
pub(crate) enum Start {
    /// Init waits for a command.
    Ready(Box<Sandbox>),
    /// Ended before it could have one.
    Ended(SandboxExit, Box<ContainerCleanup>),
}

impl Start {
    fn of((sandbox, driven): (Sandbox, Driven)) -> Self {
        match driven {
            Driven::Ready => Self::Ready(sandbox.into()),
            Driven::Ended(exit) => Self::Ended(exit, sandbox.into_cleanup().into()),
        }
    }
}

/// Starts a sandbox. Fails where no container could be started.
pub(crate) async fn start(config: &SandboxConfig, stops: &Stops) -> Result<Start, EngineError> {
    let (first, mut cleanup) = match Start::of(start_container(config, stops).await?) {
        Start::Ended(SandboxExit::Refused(message), cleanup) => (message, cleanup),
        start => return Ok(start),
    };
    tracing::warn!(sandbox = %config.id, error = first, "podman refused to start the sandbox");
    // The second container has the same name.
    if !cleanup.wait_until_removed().await {
        tracing::warn!(sandbox = %config.id, "container is still there; starting no second one");
        return Ok(Start::Ended(SandboxExit::EngineFailed(first), cleanup));
    }
    let checked = tokio::select! {
        checked = check_podman(config) => checked,
        reason = stops.requested() => return Ok(Start::Ended(SandboxExit::Stopped(reason), cleanup)),
    };
    let checked = match checked {
        Ok(()) => tokio::select! {
            checked = config.engine.check_image_mount(&config.image_id) => checked,
            reason = stops.requested() => {
                unmount_image(config).await;
                return Ok(Start::Ended(SandboxExit::Stopped(reason), cleanup));
            }
        },
        failed => failed,
    };
    if let Err(error) = checked {
        tracing::warn!(%error, "podman cannot start an empty container either");
        return Ok(Start::Ended(SandboxExit::EngineFailed(first), cleanup));
    }
    Ok(match Start::of(start_container(config, stops).await?) {
        Start::Ended(SandboxExit::Refused(second), cleanup) => {
            let exit = if is_same_failure(&first, &second) {
                SandboxExit::ImageNotRunnable(second)
            } else {
                SandboxExit::EngineFailed(second)
            };
            Start::Ended(exit, cleanup)
        }
        start => start,
    })
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
