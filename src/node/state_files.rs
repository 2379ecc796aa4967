//! State of a node between its starts: files below `node/` of its data directory, 0600.
//!
//! | file | |
//! |---|---|
//! | `key` | proves at each registration that this is the same machine |
//! | `session.json` | last registration: URLs of the orchestrator, and the token |
//! | `orchestrator.json` | URL and pin of the orchestrator that the node joined last with a pin |
//! | `config.json` | last configuration, with the token of the Worker API |
//!
//! The node registers and fetches the configuration at every start: of the session only the offer of a tunnel is read
//! again, and the configuration is for operators.

use crate::{
    api::nodes::{Bootstrap, NodeConfig},
    data_dir::{DataDir, SecretFile},
    secrets::{check_random_secret, random_secret},
    tls::Pin,
};
use serde::{Deserialize, Serialize};
use std::{fs, io, path::Path};
use zeroize::Zeroizing;

/// Name of the file with the orchestrator's pin.
const ORCHESTRATOR_FILE: &str = "node/orchestrator.json";

/// Name of the file with the last registration.
const SESSION_FILE: &str = "node/session.json";

/// Orchestrator that the node joined with a pin.
#[derive(Serialize, Deserialize)]
pub(super) struct PinnedOrchestrator {
    /// URL of its control plane, without a slash at the end.
    pub(super) url: String,
    /// Pin of its key.
    pub(super) pin: Pin,
    /// Pin of the join token with which the node was started then: a token with another pin is a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token_pin: Option<Pin>,
}

/// The state files of a node.
pub(super) struct StateFiles(DataDir);

impl StateFiles {
    pub(super) fn open(data_dir: &DataDir) -> io::Result<Self> {
        data_dir.subdir("node")?;
        Ok(Self(data_dir.clone()))
    }

    /// The key of this node, generated at the first call.
    pub(super) fn node_key(&self) -> io::Result<Zeroizing<String>> {
        let file = SecretFile {
            name: "node/key",
            validate: check_random_secret,
            advice: "restore it from a backup, or delete it and make the orchestrator forget this node: cynode nodes forget SLUG",
        };
        self.0.secret(file, random_secret).map(|(key, _)| key)
    }

    /// Orchestrator that was joined last with a pin.
    pub(super) fn pinned_orchestrator(&self) -> io::Result<Option<PinnedOrchestrator>> {
        read_pinned_orchestrator(self.0.path())
    }

    pub(super) fn write_pinned_orchestrator(&self, orchestrator: &PinnedOrchestrator) {
        self.write(ORCHESTRATOR_FILE, orchestrator);
    }

    /// Forgets the orchestrator that was joined with a pin, after another trust has replaced it.
    pub(super) fn forget_pinned_orchestrator(&self) {
        if let Err(error) = fs::remove_file(self.0.join(ORCHESTRATOR_FILE))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = ORCHESTRATOR_FILE, "state file could not be removed");
        }
    }

    /// Whether the orchestrator of the last registration offered no tunnel. False before the first one.
    pub(super) fn lacked_tunnel(&self) -> bool {
        let session = fs::read(self.0.join(SESSION_FILE)).ok();
        let session = session.and_then(|text| serde_json::from_slice::<Bootstrap>(&text).ok());
        session.is_some_and(|session| session.orchestrator.endpoints.node_tunnel_url.is_none())
    }

    pub(super) fn write_session(&self, session: &Bootstrap) {
        self.write(SESSION_FILE, session);
    }

    pub(super) fn write_config(&self, config: &NodeConfig) {
        self.write("node/config.json", config);
    }

    /// Writes a file for operators. A failure is only logged: a full disk must not stop a node.
    fn write(&self, name: &str, what: &impl Serialize) {
        let text = serde_json::to_vec_pretty(what).map(Zeroizing::new);
        let kept = text
            .map_err(io::Error::other)
            .and_then(|text| self.0.write(name, &text));
        if let Err(error) = kept {
            tracing::warn!(%error, "state file could not be written");
        }
    }
}

/// Orchestrator that the node with this data directory joined last with a pin.
pub(super) fn read_pinned_orchestrator(data_dir: &Path) -> io::Result<Option<PinnedOrchestrator>> {
    let path = data_dir.join(ORCHESTRATOR_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(io::Error::new(
                error.kind(),
                format!("can't read {}: {error}", path.display()),
            ));
        }
    };
    serde_json::from_str(&text).map(Some).map_err(|_| {
        let path = path.display();
        io::Error::other(format!(
            "{path} is damaged; delete it and give the orchestrator's pin with --pin"
        ))
    })
}
