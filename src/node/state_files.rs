//! State of a node between its starts: files below `node/` of its data directory, 0600.
//!
//! | file | |
//! |---|---|
//! | `key` | proves at each registration that this is the same machine |
//! | `session.json` | last registration: URLs of the orchestrator, and the token |
//! | `config.json` | last configuration, with the token of the Worker API |
//!
//! Only the key is read again: the node registers and fetches the configuration at every start. The other two are
//! for operators.

use crate::{
    api::nodes::{Bootstrap, NodeConfig},
    data_dir::{DataDir, SecretFile},
    secrets::{check_random_secret, random_secret},
};
use serde::Serialize;
use std::io;
use zeroize::Zeroizing;

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

    pub(super) fn write_session(&self, session: &Bootstrap) {
        self.write("node/session.json", session);
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
