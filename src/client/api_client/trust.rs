//! Trust of the client in the gateway.

use super::{
    ANSWER_TIMEOUT, ApiClient, READ_TIMEOUT,
    send::{CallFault, Payload},
};
use crate::{
    cli::TrustFlags,
    client::{agent::agent, connection, credentials::KnownServer},
    exit::Failure,
    tls::{self, Cause, Pin, Trust},
};
use http::Method;
use std::collections::BTreeMap;

impl ApiClient {
    /// Rule by which the gateway is trusted.
    pub(in crate::client) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Trusts the key of this pin from now on, and nothing else.
    pub(in crate::client) fn trust_key(&mut self, pin: Pin) {
        self.trust = Trust::new(Some(pin), None);
        self.agent = agent(&self.trust, ANSWER_TIMEOUT, READ_TIMEOUT);
    }

    /// Pin of the gateway's key where neither a pin nor an authority vouches for it. No secret is sent to find out.
    pub(in crate::client) fn unknown_key(&self) -> Result<Option<Pin>, Failure> {
        if self.trust.pin().is_some() || !tls::is_encrypted(&self.url) {
            return Ok(None);
        }
        let asked = self.run(&Method::GET, "/readyz", None, &[], Payload::None);
        let Err(CallFault::NoAnswer(error)) = asked else {
            return Ok(None);
        };
        match connection::untrusted(&error) {
            Some(server) if server.cause == Cause::UnknownIssuer => Ok(Some(server.found.clone())),
            _ => Err(connection::failure(&self.url, &error)),
        }
    }
}

/// Whether what is remembered of the gateway's key decides about a connection to it.
pub(super) fn needs_known_key(url: &str, flags: &TrustFlags) -> bool {
    tls::is_encrypted(url) && flags.pin.is_none() && flags.ca_file.is_none()
}

/// Rule by which the gateway at `url` is trusted: a pin or a file that is given, else what its login remembers, else the
/// authorities of the system.
pub(super) fn trust_in(
    url: &str,
    flags: &TrustFlags,
    servers: &BTreeMap<String, KnownServer>,
) -> Result<Trust, Failure> {
    if !tls::is_encrypted(url) {
        if flags.pin.is_some() {
            let text = format!(
                "a pin (--pin, CYNODE_PIN) needs an encrypted connection, and {url} is none; write https:// in the URL, \
                 or leave the pin out"
            );
            return Err(Failure::usage(text));
        }
        return Ok(Trust::default());
    }
    let known = servers.get(url).cloned().unwrap_or_default();
    // Who names a file trusts its authorities now, whatever key was remembered.
    let known_pin = known.pin.filter(|_| flags.ca_file.is_none());
    let pin = flags.pin.clone().or(known_pin);
    let ca_file = flags.ca_file.clone().or(known.ca_file);
    let trust = Trust::new(pin, ca_file);
    // An unreadable file is a wrong flag, not an unreachable orchestrator.
    trust
        .config()
        .map_err(|error| Failure::usage(error.to_string()))?;
    Ok(trust)
}
