//! A sandbox's start, and whose fault it is when podman refuses it.
//!
//! An image that can't be run is to end its task for good, and trouble of podman's is to be tried again. How
//! the two are told apart is in [`Engine::probe_without_image`] and [`Engine::check_image_mount`]; the second try that
//! it takes is as good as the first, so a bad moment of podman's that is over by then costs the job nothing but
//! that moment.
//!
//! [`Engine::probe_without_image`]: crate::engine::Engine::probe_without_image
//! [`Engine::check_image_mount`]: crate::engine::Engine::check_image_mount

use super::{
    exit::{SandboxExit, StopReason, stop_requested},
    sink::OutputSink,
    supervisor::{ContainerCleanup, Sandbox},
};
use crate::engine::{EngineError, is_same_failure, probe::ProbeEnv};
use tokio::sync::watch;

/// Runs a sandbox to its end, or to the order to reason.
pub(super) async fn run(
    sandbox: &Sandbox<'_>,
    sink: &OutputSink,
    reason: &watch::Sender<Option<StopReason>>,
) -> Result<(SandboxExit, ContainerCleanup), EngineError> {
    let (end, mut cleanup) = sandbox.run(sink, reason.subscribe()).await?;
    let SandboxExit::Refused(words) = end else {
        return Ok((end, cleanup));
    };
    tracing::warn!(
        name = sandbox.name,
        words,
        "podman refused to start the sandbox"
    );
    // The second try has the same name.
    cleanup.wait_until_removed().await;
    let probe_env = ProbeEnv {
        init: sandbox.init,
        scratch: sandbox.spool.path(),
        node_uuid: Some(sandbox.node_uuid),
    };
    let workspace = sandbox.spool.workspace();
    let started = sandbox.engine.probe_without_image(probe_env, &workspace);
    let mut stops = reason.subscribe();
    let mut looked = tokio::select! {
        started = started => started,
        reason = stop_requested(&mut stops) => return Ok((SandboxExit::Stopped(reason), cleanup)),
    };
    if looked.is_ok() {
        looked = tokio::select! {
            mounted = sandbox.engine.check_image_mount(sandbox.image_id) => mounted,
            reason = stop_requested(&mut stops) => {
                // Cut off in the middle, the image may be mounted.
                if let Err(error) = sandbox.engine.unmount_image(sandbox.image_id).await {
                    tracing::debug!(%error, "an image is not unmounted");
                }
                return Ok((SandboxExit::Stopped(reason), cleanup));
            }
        };
    }
    if let Err(error) = looked {
        tracing::warn!(%error, "podman starts nothing else, either");
        return Ok((SandboxExit::EngineFailed(words), cleanup));
    }
    let (end, cleanup) = sandbox.run(sink, reason.subscribe()).await?;
    let end = match end {
        SandboxExit::Refused(again) if is_same_failure(&words, &again) => {
            SandboxExit::ImageNotRunnable(again)
        }
        SandboxExit::Refused(again) => SandboxExit::EngineFailed(again),
        end => end,
    };
    Ok((end, cleanup))
}
