//! Encryption of the orchestrators that tests start. They speak plain HTTP, since many tests read and write the bytes of
//! the Node API themselves. With `CYNODE_TEST_TLS=on` those of a [`Cluster`](super::Cluster), which has a real node, follow
//! the default instead.

use super::{Orchestrator, tls::pin_at};
use std::{collections::BTreeMap, env, path::Path, sync::Mutex};

/// Pins of the orchestrators that were started with the default, by the URL of their Node API.
static PINS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Whether tests that say nothing of encryption have the default.
fn is_on() -> bool {
    env::var("CYNODE_TEST_TLS").is_ok_and(|value| value == "on")
}

/// Whether these flags of an orchestrator say how it is encrypted.
pub(crate) fn is_chosen(flags: &[&str]) -> bool {
    flags.iter().any(|flag| flag.starts_with("--tls"))
}

/// Whether the orchestrator of a cluster with these flags is to have the default. Users speak plain HTTP in tests, so
/// not where the gateway would be encrypted.
pub(crate) fn is_wanted(gateway: &str, flags: &[&str]) -> bool {
    is_on() && !is_chosen(flags) && gateway.starts_with("127.")
}

/// Whether an orchestrator with this home has had the default before, so that its nodes know it by its pin.
pub(crate) fn was_default(home: &Path, flags: &[&str]) -> bool {
    is_on() && !is_chosen(flags) && home.join("orchestrator/keys/tls.key").exists()
}

impl Orchestrator {
    /// Starts one at these addresses with the encryption of an operator who says nothing of it. Its Node API speaks TLS, and
    /// nodes that a test starts with its URL know its pin.
    pub(crate) fn start_default(home: &Path, addresses: [&str; 2], more: &[&str]) -> Self {
        let mut server = Self::launch(home, addresses, more, |mut command| {
            command.env_remove("CYNODE_TLS");
            command
        });
        let (gateway, control) = (server.address("gateway"), server.address("control"));
        let mut orchestrator = Self::of(server, &gateway, &control);
        orchestrator.control_url = format!("https://{control}");
        let pin = pin_at(&control);
        let url = orchestrator.control_url.clone();
        PINS.lock().unwrap().insert(url, pin);
        orchestrator
    }
}

/// Pin of the orchestrator with this URL, where it was started with the default.
pub(crate) fn pin_of(url: &str) -> Option<String> {
    PINS.lock().unwrap().get(url).cloned()
}
