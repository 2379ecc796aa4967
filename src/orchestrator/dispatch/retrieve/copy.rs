//! Bytes of one artifact, from its node into the store.

use super::{Retrieval, error::TryError};
use crate::{
    contents::PartialUpload,
    orchestrator::{
        dispatch::turns::{self, Turn},
        node_client::ArtifactBytes,
    },
};
use tokio::time::Instant;

/// Bytes in a second below which a node counts as silent.
const MIN_RATE: u64 = 1024;

impl Retrieval<'_> {
    /// Copies to the end, or until another transfer has its turn.
    pub(super) async fn copy(
        &self,
        bytes: &mut ArtifactBytes,
        upload: &mut PartialUpload,
        turn: &Turn,
    ) -> Result<(), TryError> {
        loop {
            let (began, before) = (Instant::now(), upload.size());
            let copied = copy_for_turn(bytes, upload).await;
            let arrived = upload.size() - before;
            let is_fair = arrived > 0 && arrived >= MIN_RATE * began.elapsed().as_secs();
            if is_fair {
                self.record_progress();
            }
            match copied? {
                true => return Ok(()),
                false if !is_fair => {
                    return Err(TryError::Node("its node sends too slowly".to_owned()));
                }
                false if turn.is_wanted() => return Err(TryError::Paused),
                false => {}
            }
        }
    }
}

/// Copies for the time of a turn. Returns whether all was copied.
async fn copy_for_turn(
    bytes: &mut ArtifactBytes,
    upload: &mut PartialUpload,
) -> Result<bool, TryError> {
    let began = Instant::now();
    while began.elapsed() < turns::LENGTH {
        let Some(chunk) = bytes.next().await? else {
            return Ok(true);
        };
        upload.write(&chunk).await?;
    }
    Ok(false)
}
