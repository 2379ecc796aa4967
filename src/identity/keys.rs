//! Keys of the orchestrator: files of mode 0600, never in the database, never in the log.

use super::secret_keys::{self, SecretKeys};
use crate::{
    api::nodes::PreSharedKeys,
    data_dir::{DataDir, SecretFile},
    secrets::{check_random_secret, random_secret},
};
use std::{
    io,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// File of the pre-shared key, which an operator may provide.
const PSK_FILE: &str = "keys/psk";
/// Files of the keys that the first start generates; an operator provides none of them.
const USER_TOKEN_FILE: &str = "keys/user-token.key";
const NODE_TOKEN_FILE: &str = "keys/node-token.key";
const WORKER_TOKEN_FILE: &str = "keys/worker-token.key";
/// Next step for a key that can't be used.
const KEY_ADVICE: &str = "restore it from a backup, or move it away and start once with --new-keys, after which access tokens become invalid and nodes register again";

/// Keys with which the orchestrator signs, derives and compares.
pub struct Keys {
    pub(super) user_token: Zeroizing<String>,
    pub(super) node_token: Zeroizing<String>,
    pub(super) worker_token: Zeroizing<String>,
    pub(super) secrets: SecretKeys,
    /// Pre-shared keys, of which the newest is shown.
    psks: PreSharedKeys,
    /// Whether this start generated the pre-shared key.
    pub is_psk_generated: bool,
}

impl Keys {
    /// Reads the keys, and generates those that are missing. Pre-shared keys of the operator replace those in the
    /// file.
    pub fn open(data_dir: &DataDir, psks: Option<PreSharedKeys>) -> io::Result<Self> {
        data_dir.subdir("keys")?;
        let key = |name| {
            let (validate, advice) = (check_random_secret as fn(&str) -> _, KEY_ADVICE);
            let file = SecretFile {
                name,
                validate,
                advice,
            };
            data_dir.secret(file, random_secret).map(|(key, _)| key)
        };
        let (psks, is_psk_generated) = match psks {
            Some(psks) => (psks, false),
            None => {
                // Its keys are checked below, like those of --psk-file.
                let psk = SecretFile {
                    name: PSK_FILE,
                    validate: |text| {
                        if text.is_empty() {
                            Err("is empty")
                        } else {
                            Ok(())
                        }
                    },
                    advice: "restore it from a backup, pass another one with --psk-file, or move it away and start once with --new-keys, which generates another",
                };
                let (text, is_generated) = data_dir.secret(psk, random_secret)?;
                (parse_psks(&data_dir.join(PSK_FILE), &text)?, is_generated)
            }
        };
        Ok(Self {
            user_token: key(USER_TOKEN_FILE)?,
            node_token: key(NODE_TOKEN_FILE)?,
            worker_token: key(WORKER_TOKEN_FILE)?,
            secrets: SecretKeys::open(data_dir)?,
            psks,
            is_psk_generated,
        })
    }

    /// Path of a key that an earlier start generated, if there is one. The pre-shared key does not count: an
    /// operator may have put it there.
    pub fn find(data_dir: &Path) -> Option<PathBuf> {
        let names = [
            USER_TOKEN_FILE,
            NODE_TOKEN_FILE,
            WORKER_TOKEN_FILE,
            secret_keys::FILE,
        ];
        let keys = names.map(|name| data_dir.join(name));
        keys.into_iter().find(|key| key.exists())
    }

    /// Paths of the missing keys, including the pre-shared key unless the operator `has_psk`. That of secrets is none of
    /// them: it is made with the first secret.
    pub fn missing(data_dir: &Path, has_psk: bool) -> Vec<PathBuf> {
        let psk = (!has_psk).then_some(PSK_FILE);
        let names = [USER_TOKEN_FILE, NODE_TOKEN_FILE, WORKER_TOKEN_FILE]
            .into_iter()
            .chain(psk);
        names
            .map(|name| data_dir.join(name))
            .filter(|path| !path.exists())
            .collect()
    }

    /// Pre-shared key of this orchestrator; the newest one where there are several.
    pub fn psk(&self) -> &str {
        self.psks.newest()
    }

    /// All pre-shared keys that nodes may show.
    pub(super) fn psks(&self) -> impl Iterator<Item = &str> {
        self.psks.iter()
    }
}

/// Pre-shared keys in the text of the file at `path`.
fn parse_psks(path: &Path, text: &str) -> io::Result<PreSharedKeys> {
    PreSharedKeys::parse(text).map_err(|problem| {
        let text = format!(
            "the pre-shared key in {} {}",
            path.display(),
            problem.detail
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}
