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

/// Rule by which the orchestrator is trusted: the pin or the authorities of the settings, else the pin with which this
/// node joined the same URL before. An operator who leaves the pin, or the encryption, out later loses no protection that
/// way.
///
/// The pin of a join token counts at the node's first start with this token. A token stays in the settings of a node, also
/// after its orchestrator's key has changed and the operator has given the new pin once, with `--pin`: so a pin that was
/// remembered since then is the later word. A token with another pin is new, and its pin is the later word.
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
    if is_encrypted && is_newer(settings.token_pin.as_ref(), &known, url) {
        return Ok(settings.trust());
    }
    if is_same_url(&known.url, url) {
        tracing::info!(
            pin = %known.pin,
            "the orchestrator's pin is that of an earlier start; another one is given once, with --pin"
        );
        return Ok(Trust::new(Some(known.pin), None));
    }
    Err(NodeError::InvalidSetting(refusal(&known, url)))
}

/// Pin by which a node with this data directory trusts the orchestrator at `url` where it is given neither a pin nor
/// authorities: of its join token, or with which it joined before.
pub fn default_pin(data_dir: &Path, url: &str, token_pin: Option<Pin>) -> Option<Pin> {
    let known = read_pinned_orchestrator(data_dir).ok().flatten();
    let known = known.filter(|known| !is_newer(token_pin.as_ref(), known, url));
    match known {
        Some(known) if is_same_url(&known.url, url) => Some(known.pin),
        _ => token_pin,
    }
}

/// Whether the pin of a join token for `url` is newer than what is remembered.
fn is_newer(token_pin: Option<&Pin>, known: &PinnedOrchestrator, url: &str) -> bool {
    token_pin.is_some() && (known.token_pin.as_ref() != token_pin || !is_same_url(&known.url, url))
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
    fn pin_of_same_token_is_older() {
        const URL: &str = "https://box:12082";
        let pin =
            |digits: &str| -> Option<Pin> { format!("sha256:{}", digits.repeat(32)).parse().ok() };
        let known = |token_pin: Option<Pin>| PinnedOrchestrator {
            url: URL.to_owned(),
            pin: pin("bb").unwrap(),
            token_pin,
        };
        let newer =
            |token: Option<Pin>, known: &PinnedOrchestrator| is_newer(token.as_ref(), known, URL);
        assert!(
            !newer(pin("aa"), &known(pin("aa"))),
            "--pin was given since"
        );
        assert!(newer(pin("cc"), &known(pin("aa"))), "another token");
        assert!(newer(pin("aa"), &known(None)), "the first token");
        assert!(!newer(None, &known(pin("aa"))) && !newer(None, &known(None)));
        assert!(is_newer(
            pin("aa").as_ref(),
            &known(pin("aa")),
            "https://other"
        ));
    }

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
