//! Trust of a node in its orchestrator, also at later starts.

use super::{NodeError, Settings, state_files::StateFiles};
use crate::tls::{self, Trust};

/// Rule by which the orchestrator is trusted: the settings, else the pin with which this node joined the same URL
/// before. An operator who leaves the pin out later loses no protection that way.
pub(super) fn trust(settings: &Settings, state: &StateFiles) -> Result<Trust, NodeError> {
    let is_explicit = settings.pin.is_some() || settings.ca_file.is_some();
    if is_explicit || !tls::is_encrypted(&settings.orchestrator) {
        return Ok(settings.trust());
    }
    let Some(known) = state.pinned_orchestrator()? else {
        return Ok(settings.trust());
    };
    if known.url == without_slash(&settings.orchestrator) {
        tracing::info!(pin = %known.pin, "the orchestrator's pin is that of an earlier start");
        return Ok(Trust::new(Some(known.pin), None));
    }
    Err(NodeError::InvalidSetting(format!(
        "this node has joined {:.255} with a pin; give the pin of the orchestrator at {} with --pin, or delete \
         node/orchestrator.json in this node's data directory to trust the authorities of the system",
        known.url, settings.orchestrator
    )))
}

/// A URL in the one form in which it is remembered.
pub(super) fn without_slash(url: &str) -> &str {
    url.trim_end_matches('/')
}
