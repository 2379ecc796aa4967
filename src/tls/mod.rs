//! TLS, and whom to trust without an authority.
//!
//! A server of a self-hosted team has no name that an authority could certify, so its **pin** identifies it: the
//! digest of its public key. The certificate around the key is renewed; the key, and with it the pin, stays. Nodes and
//! users compare the pin once, as with the host key of SSH, and refuse any other later.
//!
//! TLS 1.3, and 1.2 for older clients, by rustls. A client's rule for servers is its [`Trust`]; a server that breaks it
//! is [`Untrusted`], before the first byte of a request is sent.

mod certificate;
mod expiry;
mod exposed;
mod pin;
mod provider;
mod server;
mod stream;
mod trust;
mod untrusted;
mod verifier;

pub use expiry::expires_at;
pub use exposed::{is_encrypted, is_exposed};
pub use pin::{Pin, PinError};
pub use provider::provider;
pub use server::{CertificateFiles, ServerTls};
pub use stream::ClientStream;
pub use trust::{Trust, server_name};
pub use untrusted::{Cause, Untrusted, reason};
