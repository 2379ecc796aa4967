//! Trust of a node in its orchestrator, also at later starts.

use super::{
    NodeError, Settings,
    state_files::{PinnedOrchestrator, StateFiles, read_pinned_orchestrator},
};
use crate::{
    http::resolve::port_of,
    tls::{self, Pin, Trust},
};
use http::Uri;
use std::path::Path;

/// Rule by which the orchestrator is trusted: the settings, else the pin with which this node joined the same URL
/// before. An operator who leaves the pin, or the encryption, out later loses no protection that way.
pub(super) fn trust(settings: &Settings, state: &StateFiles) -> Result<Trust, NodeError> {
    let url = &settings.orchestrator;
    let is_encrypted = tls::is_encrypted(url);
    let is_explicit = settings.pin.is_some() || settings.ca_file.is_some();
    // Plain HTTP inside of this machine needs no trust, and the orchestrator of `dev` is this process.
    let is_local = settings.ephemeral || (!is_encrypted && !tls::is_exposed(url));
    if is_local || (is_encrypted && is_explicit) {
        return Ok(settings.trust());
    }
    let Some(known) = state.pinned_orchestrator()? else {
        return Ok(settings.trust());
    };
    if is_same_url(&known.url, url) {
        tracing::info!(
            pin = %known.pin,
            "the orchestrator's pin is that of an earlier start; another one is given once, with --pin"
        );
        return Ok(Trust::new(Some(known.pin), None));
    }
    Err(NodeError::InvalidSetting(refusal(&known, url)))
}

/// Pin with which a node with this data directory joined the orchestrator at `url`, if any.
pub fn remembered_pin(data_dir: &Path, url: &str) -> Option<Pin> {
    let known = read_pinned_orchestrator(data_dir).ok()??;
    is_same_url(&known.url, url).then_some(known.pin)
}

/// Error text for a URL at which the pin that is remembered does not hold.
fn refusal(known: &PinnedOrchestrator, url: &str) -> String {
    if tls::is_encrypted(url) {
        return format!(
            "this node has joined {:.255} with a pin; give the pin of the orchestrator at {url} with --pin, or delete \
             node/orchestrator.json in this node's data directory to trust the authorities of the system",
            known.url
        );
    }
    format!(
        "this node has joined {:.255} with a pin, and {url} is not encrypted; write https:// in the URL of --orchestrator, \
         or delete node/orchestrator.json in this node's data directory to go on without encryption",
        known.url
    )
}

/// Whether two URLs name the same server and path.
fn is_same_url(a: &str, b: &str) -> bool {
    let (Ok(a), Ok(b)) = (a.parse::<Uri>(), b.parse::<Uri>()) else {
        return false;
    };
    let hosts = [&a, &b].map(|url| url.host().unwrap_or_default());
    a.scheme() == b.scheme()
        && hosts[0].eq_ignore_ascii_case(hosts[1])
        && port_of(&a) == port_of(&b)
        && without_slash(a.path()) == without_slash(b.path())
}

/// A URL in the one form in which it is remembered.
pub(super) fn without_slash(url: &str) -> &str {
    url.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_server_is_known_in_every_spelling() {
        for (a, b, same) in [
            ("https://box:12082", "https://BOX:12082/", true),
            ("https://box", "HTTPS://box:443", true),
            ("https://box/x", "https://box/x/", true),
            ("https://[2001:db8::1]:1", "https://[2001:DB8::1]:1", true),
            ("https://box:12082", "http://box:12082", false),
            ("https://box:12082", "https://box", false),
            ("https://box", "https://other", false),
            ("https://box/x", "https://box/X", false),
            ("https://box", "no URL", false),
        ] {
            assert_eq!(is_same_url(a, b), same, "{a} {b}");
            assert_eq!(is_same_url(b, a), same, "{b} {a}");
        }
    }
}
