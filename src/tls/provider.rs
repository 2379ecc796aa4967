//! Cryptography of all connections.

use rustls::crypto::{CryptoProvider, ring};
use std::sync::{Arc, LazyLock};

/// The one provider of cryptography, which needs no other tools to build than the database does.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&PROVIDER)
}
