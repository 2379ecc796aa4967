//! What a node keeps between its starts, below `node/` of its data directory, 0600.
//!
//! | file | |
//! |---|---|
//! | `key` | shows at each registration that it is the same machine that comes again |
//! | `session.json` | the last registration: where the orchestrator is, and the token |
//! | `config.json` | the last configuration, with the Worker API's token |
//!
//! Only the key is read back: the node registers and fetches at every start, as the contract says.
//! The other two tell an operator what the node was last given.

use crate::{
    api::nodes::{Bootstrap, NodeConfig},
    data_dir::{DataDir, SecretFile},
    secrets::{check_random_secret, random_secret},
};
use serde::Serialize;
use std::io;
use zeroize::Zeroizing;

/// The files.
pub(super) struct StateFiles(DataDir);

impl StateFiles {
    pub(super) fn open(data_dir: &DataDir) -> io::Result<Self> {
        data_dir.subdir("node")?;
        Ok(Self(data_dir.clone()))
    }

    /// The key of this machine, made the first time.
    pub(super) fn node_key(&self) -> io::Result<Zeroizing<String>> {
        let file = SecretFile {
            name: "node/key",
            validate: check_random_secret,
            advice: "restore it from a backup, or delete it and have the orchestrator forget this node with: cynode nodes forget SLUG",
        };
        self.0.secret(file, random_secret).map(|(key, _)| key)
    }

    pub(super) fn write_session(&self, session: &Bootstrap) {
        self.write("node/session.json", session);
    }

    pub(super) fn write_config(&self, config: &NodeConfig) {
        self.write("node/config.json", config);
    }

    /// A full disk must not keep a node from serving.
    fn write(&self, name: &str, what: &impl Serialize) {
        let text = serde_json::to_vec_pretty(what).map(Zeroizing::new);
        let kept = text
            .map_err(io::Error::other)
            .and_then(|text| self.0.write(name, &text));
        if let Err(error) = kept {
            tracing::warn!(%error, "the node goes on without having kept it");
        }
    }
}
