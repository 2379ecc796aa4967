//! Key material: files of mode 0600, never rows, never log lines.

use crate::data_dir::DataDir;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::io;
use zeroize::Zeroizing;

/// Everything the orchestrator signs, derives and compares with.
pub struct Keys {
    pub(super) user_token: Zeroizing<String>,
    pub(super) node_token: Zeroizing<String>,
    pub(super) worker_token: Zeroizing<String>,
    psk: Zeroizing<String>,
    /// Whether the pre-shared key was made at this start.
    pub psk_is_new: bool,
}

impl Keys {
    /// Reads the keys, and makes those that are missing. An operator's own pre-shared key takes
    /// the place of the one in the file.
    pub fn open(data_dir: &DataDir, psk: Option<Zeroizing<String>>) -> io::Result<Self> {
        data_dir.subdir("keys")?;
        let key = |name: &str| {
            data_dir
                .secret(&format!("keys/{name}"), random_secret)
                .map(|(key, _)| key)
        };
        let (psk, psk_is_new) = match psk {
            Some(psk) => (psk, false),
            None => data_dir.secret("keys/psk", random_secret)?,
        };
        Ok(Self {
            user_token: key("user-token.key")?,
            node_token: key("node-token.key")?,
            worker_token: key("worker-token.key")?,
            psk,
            psk_is_new,
        })
    }

    /// The pre-shared key of this orchestrator.
    pub fn psk(&self) -> &str {
        &self.psk
    }
}

/// 256 random bits as text that needs no quoting anywhere.
///
/// # Panics
/// When the system has no randomness to give; nothing safe could go on then.
pub fn random_secret() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    if let Err(error) = getrandom::fill(bytes.as_mut()) {
        panic!("the system gives no random numbers: {error}");
    }
    Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()))
}
