//! Secrets as they are stored: encrypted. The store knows no key.

use crate::api::{UserId, secrets::SecretName};

/// Encrypted secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedSecret {
    /// User to whom it belongs; `None` for all users.
    pub owner: Option<UserId>,
    /// Name of the secret.
    pub name: SecretName,
    /// Encrypted value.
    pub sealing: SecretSealing,
}

/// Encrypted value of a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretSealing {
    /// Id of the key with which it is encrypted.
    pub key_id: String,
    /// Nonce, ciphertext and tag.
    pub bytes: Vec<u8>,
}

/// Result of encrypting a secret with another key.
pub enum Resealed {
    /// It is encrypted with the key already.
    Unchanged,
    /// Its new encryption.
    New(SecretSealing),
    /// It can't be read.
    Unreadable,
}
