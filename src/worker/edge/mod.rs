//! Secrets at the edge: a job has a placeholder, and the [proxy](super::egress) puts the value in its place, in requests
//! to one host. And TLS that the proxy opens where a job asks for it.
//!
//! ```text
//! worker, at the start ──▶ shim: EdgeAccess, in its memory ──▶ each worker process: Edge, in the proxy of the sandbox
//!                            └──▶ init: certificate of the authority, placeholders in the environment
//! ```
//!
//! The values are in no sandbox and on no disk: a command that is taken over, and a person who reads its environment,
//! has a placeholder that is worth nothing elsewhere. An [`Authority`] of the sandbox's own lets the proxy speak TLS with
//! the command; the host's real certificate is checked by the node.
//!
//! What this does not keep a job from: to use the secret at that host as long as it runs. And a host that sends a request
//! back gives the job the value, which is masked in its output as every other.

mod authority;
mod swap;

pub(super) use swap::SwapFault;

use crate::{
    api::{
        egress::{HostName, HostPort},
        jobs::SandboxSpec,
        secrets::{DEFAULT_HEADER, SecretName, SecretRef, SecretValue, SecretValues},
    },
    sandbox::access::Access,
    sandbox_init::authority::AUTHORITIES,
};
use authority::Authority;
use http::{HeaderMap, HeaderName};
use parking_lot::Mutex;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, ffi::OsString, io, sync::Arc};
use swap::{Swap, swap_in};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Variables by which programs find the authorities that they trust: OpenSSL, Go and others; curl; Python's requests; pip;
/// Node.js; git; Cargo; AWS's tools; Deno.
const TRUST_VARIABLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "DENO_CERT",
];

/// What the proxy of a sandbox needs at the edge. It goes through the memory of the shim, and stands on no disk.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(super) struct EdgeAccess {
    /// There is one where the proxy opens TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authority: Option<Authority>,
    /// Hosts whose TLS it opens.
    #[serde(default)]
    terminate: Vec<HostPort>,
    #[serde(default)]
    secrets: Vec<EdgeSecret>,
}

/// Secret that the job does not see.
#[derive(Clone, Serialize, Deserialize, Debug)]
struct EdgeSecret {
    name: SecretName,
    /// Variable that gets the placeholder.
    env: String,
    /// The one host that gets the value.
    at: HostPort,
    header: String,
    placeholder: String,
    value: SecretValue,
}

/// Secrets of a job, divided into those that its command gets and those that it does not.
pub(super) struct Divided {
    pub(super) for_command: SecretValues,
    /// `None` where there is nothing at the edge.
    pub(super) edge: Option<EdgeAccess>,
}

impl Divided {
    /// Divides the secrets of a job, and makes what its edge needs.
    pub(super) fn new(spec: &SandboxSpec, values: &SecretValues) -> io::Result<Self> {
        let terminate = spec.egress.as_ref().map(|egress| &egress.terminate);
        let terminate = terminate.cloned().unwrap_or_default();
        let secrets = spec.secrets.iter();
        let secrets: Vec<_> = secrets
            .filter_map(|secret| EdgeSecret::new(secret, values))
            .collect();
        let is_for_command = |env: &str| secrets.iter().all(|secret| secret.env != env);
        let for_command = values.iter().filter(|(env, _)| is_for_command(env));
        let for_command = for_command.map(|(env, value)| (env.to_owned(), owned(value)));
        let for_command = for_command.collect();
        if terminate.is_empty() && secrets.is_empty() {
            let edge = None;
            return Ok(Self { for_command, edge });
        }
        let authority = match terminate.is_empty() {
            true => None,
            false => Some(Authority::new(terminate.iter().map(|at| &at.host))?),
        };
        let edge = Some(EdgeAccess {
            authority,
            terminate,
            secrets,
        });
        Ok(Self { for_command, edge })
    }

    /// Bytes of all of it, about.
    pub(super) fn bytes(&self) -> usize {
        let edge = self.edge.as_ref().map_or(0, EdgeAccess::bytes);
        self.for_command.bytes() + edge
    }
}

impl EdgeSecret {
    /// `None` for a secret that the command gets.
    fn new(secret: &SecretRef, values: &SecretValues) -> Option<Self> {
        let at = secret.host.clone()?;
        let (_, value) = values.iter().find(|(env, _)| *env == secret.env)?;
        let header = secret.header.as_deref().unwrap_or(DEFAULT_HEADER);
        Some(Self {
            placeholder: format!("cynode-secret-{}-{}", secret.name, Uuid::new_v4().simple()),
            name: secret.name.clone(),
            env: secret.env.clone(),
            at,
            header: header.to_owned(),
            value: owned(value),
        })
    }
}

impl EdgeAccess {
    /// Form in which the shim keeps it.
    pub(super) fn encode(&self) -> io::Result<Access> {
        Ok(Zeroizing::new(serde_json::to_vec(self)?))
    }

    /// Reads that form.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        // The error could quote a value.
        let read = serde_json::from_slice(bytes).ok();
        if read.is_none() {
            tracing::error!(
                "secrets at the edge can't be read from the shim; the job's requests go out with placeholders"
            );
        }
        read
    }

    /// Certificate of the authority that the command is to trust, in PEM; empty where there is none.
    pub(super) fn authority(&self) -> &[u8] {
        let certificate = self.authority.as_ref().map(Authority::certificate);
        certificate.unwrap_or_default().as_bytes()
    }

    /// Variables by which programs trust the authority.
    pub(super) fn variables(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let names = self.authority.as_ref().map(|_| TRUST_VARIABLES);
        let names = names.into_iter().flatten();
        names.map(|name| (name.into(), AUTHORITIES.into()))
    }

    /// Variables of the secrets, with their placeholders.
    pub(super) fn placeholders(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let secrets = self.secrets.iter();
        secrets.map(|secret| {
            (
                OsString::from(&secret.env),
                OsString::from(&secret.placeholder),
            )
        })
    }

    /// Bytes of what it has, about.
    fn bytes(&self) -> usize {
        let secrets = self.secrets.iter().map(|secret| {
            let at = secret.at.host.as_str().len();
            let texts = secret.env.len() + secret.header.len() + secret.placeholder.len();
            at + texts + secret.value.expose().len()
        });
        let hosts = self.terminate.iter().map(|at| at.host.as_str().len() + 8);
        let authority = self.authority.as_ref().map_or(0, Authority::bytes);
        authority + secrets.chain(hosts).sum::<usize>()
    }
}

/// All values that are masked in the output of a command: those that it has, and those at the edge, which a host may send
/// back.
pub(super) fn masked(for_command: &SecretValues, edge: Option<&EdgeAccess>) -> SecretValues {
    let given = for_command.iter();
    let given = given.map(|(env, value)| (env.to_owned(), owned(value)));
    let kept_back = edge.into_iter().flat_map(|edge| &edge.secrets);
    let kept_back = kept_back.map(|secret| (secret.env.clone(), secret.value.clone()));
    given.chain(kept_back).collect()
}

fn owned(value: &str) -> SecretValue {
    Zeroizing::new(value.to_owned()).into()
}

/// Edge of one sandbox in its proxy.
#[derive(Default)]
pub(super) struct Edge {
    authority: Option<Authority>,
    terminate: Vec<HostPort>,
    swaps: Vec<(HostPort, Swap)>,
    /// TLS of the hosts that were asked for.
    servers: Mutex<HashMap<HostName, Arc<ServerConfig>>>,
}

impl Edge {
    /// Edge with what the shim has kept.
    pub(super) fn new(access: Option<EdgeAccess>) -> Self {
        let Some(access) = access else {
            return Self::default();
        };
        let swaps = access.secrets.into_iter().filter_map(|secret| {
            let swap = Swap {
                // The orchestrator has checked it.
                header: HeaderName::from_bytes(secret.header.as_bytes()).ok()?,
                name: secret.name,
                placeholder: secret.placeholder,
                value: secret.value,
            };
            Some((secret.at, swap))
        });
        Self {
            swaps: swaps.collect(),
            authority: access.authority,
            terminate: access.terminate,
            servers: Mutex::default(),
        }
    }

    /// Whether the proxy opens the TLS of tunnels to this host and port.
    pub(super) fn terminates(&self, host: &HostName, port: u16) -> bool {
        let is_named = |at: &HostPort| at.host == *host && at.port == port;
        self.authority.is_some() && self.terminate.iter().any(is_named)
    }

    /// TLS for a client that asks for this host.
    pub(super) fn server(&self, host: &HostName) -> io::Result<Arc<ServerConfig>> {
        let Some(authority) = &self.authority else {
            return Err(io::Error::other("the sandbox has no authority"));
        };
        if let Some(server) = self.servers.lock().get(host) {
            return Ok(Arc::clone(server));
        }
        let server = authority.certify(host)?;
        self.servers
            .lock()
            .insert(host.clone(), Arc::clone(&server));
        Ok(server)
    }

    /// Puts the values of secrets for this host and port into the headers of a request there; whether there was one.
    /// A request in the clear that should have one, and only inside of TLS, is a fault.
    pub(super) fn swap(
        &self,
        (host, port): (&HostName, u16),
        is_encrypted: bool,
        headers: &mut HeaderMap,
    ) -> Result<bool, SwapFault> {
        let meant = self.swaps.iter();
        let meant = meant.filter(|(at, _)| at.host == *host && at.port == port);
        let mut meant = meant.map(|(_, swap)| swap);
        if is_encrypted == self.terminates(host, port) {
            return swap_in(headers, meant);
        }
        // With the placeholder the host would refuse it, and say nothing of the reason.
        match meant.find(|swap| swap.is_meant_in(headers)) {
            Some(swap) => Err(SwapFault::InClear(swap.name.clone())),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests;
