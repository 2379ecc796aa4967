//! TLS, and whom to trust without an authority.
//!
//! A server of a self-hosted team has no name that an authority could certify, so its **pin** identifies it: the
//! digest of its public key. The certificate around the key is renewed; the key, and with it the pin, stays. Who joins
//! or logs in compares the pin once, as with the host key of SSH, and refuses any other later.
//!
//! TLS 1.3, and 1.2 for older clients, by rustls.

mod certificate;
mod expiry;
mod pin;
mod provider;
mod server;

pub use expiry::expires_at;
pub use pin::{Pin, PinError};
pub use provider::provider;
pub use server::{CertificateFiles, ServerTls};
