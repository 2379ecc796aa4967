//! A sandbox's start, and whose fault it is when podman refuses it.
//!
//! An image that can't be run is to end its task for good, and trouble of podman's is to be tried again. How
//! the two are told apart is in [`Engine::starts_without_image`] and [`Engine::mounts_image`]; the second try that
//! it takes is as good as the first, so a bad moment of podman's that is over by then costs the job nothing but
//! that moment.
//!
//! [`Engine::starts_without_image`]: crate::engine::Engine::starts_without_image
//! [`Engine::mounts_image`]: crate::engine::Engine::mounts_image

use super::{
    end::{End, Halt, ordered},
    sandbox::{Remains, Sandbox},
    tape::Tape,
};
use crate::engine::{EngineError, is_same_reason, probe::Ground};
use tokio::sync::watch;

/// Runs a sandbox to its end, or to the order to halt.
pub(super) async fn run(
    sandbox: &Sandbox<'_>,
    tape: &Tape,
    halt: &watch::Sender<Option<Halt>>,
) -> Result<(End, Remains), EngineError> {
    let (end, mut remains) = sandbox.run(tape, halt.subscribe()).await?;
    let End::Refused(words) = end else {
        return Ok((end, remains));
    };
    tracing::warn!(
        name = sandbox.name,
        words,
        "podman refused to start the sandbox"
    );
    // The second try has the same name.
    remains.clear().await;
    let ground = Ground {
        init: sandbox.init,
        scratch: sandbox.spool.path(),
        node_uuid: Some(sandbox.node_uuid),
    };
    let workspace = sandbox.spool.workspace();
    let started = sandbox.engine.starts_without_image(ground, &workspace);
    let mut orders = halt.subscribe();
    let mut looked = tokio::select! {
        started = started => started,
        halt = ordered(&mut orders) => return Ok((End::Halted(halt), remains)),
    };
    if looked.is_ok() {
        looked = tokio::select! {
            mounted = sandbox.engine.mounts_image(sandbox.image_id) => mounted,
            halt = ordered(&mut orders) => {
                // Cut off in the middle, the image may be mounted.
                if let Err(error) = sandbox.engine.unmount_image(sandbox.image_id).await {
                    tracing::debug!(%error, "an image is not unmounted");
                }
                return Ok((End::Halted(halt), remains));
            }
        };
    }
    if let Err(error) = looked {
        tracing::warn!(%error, "podman starts nothing else, either");
        return Ok((End::Engine(words), remains));
    }
    let (end, remains) = sandbox.run(tape, halt.subscribe()).await?;
    let end = match end {
        End::Refused(again) if is_same_reason(&words, &again) => End::Image(again),
        End::Refused(again) => End::Engine(again),
        end => end,
    };
    Ok((end, remains))
}
