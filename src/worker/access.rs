//! Access to the Worker API, and the rules for jobs. A node gets both with its configuration, and new ones when it
//! registers again, while jobs run.

use super::Settings;
use crate::{
    api::{
        OrchestratorId,
        jobs::{DEFAULT_MAX_TIMEOUT_SECONDS, DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
    },
    digest::sha256_hex,
    http::{MAX_BODY_BYTES, request::Request},
};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Rules for jobs. Node and orchestrator each have some, and the stricter ones count.
#[derive(Clone, Debug)]
pub struct JobPolicy {
    /// Lists of image patterns; each list must allow an image.
    pub allowed_images: Vec<Vec<String>>,
    /// Longest time limit of a job, in seconds.
    pub max_timeout_seconds: u64,
    /// Longest body of a request.
    pub max_request_bytes: usize,
}

impl Default for JobPolicy {
    /// Rules of the contract.
    fn default() -> Self {
        Self {
            allowed_images: Vec::new(),
            max_timeout_seconds: MAX_TIMEOUT_SECONDS,
            max_request_bytes: MAX_BODY_BYTES,
        }
    }
}

/// Access that the configuration of a node grants to its orchestrator.
pub struct AccessGrant {
    /// Bearer token of the Worker API.
    pub token: Zeroizing<String>,
    /// Orchestrator that has the token; unknown where it sends no identity.
    pub orchestrator: Option<OrchestratorId>,
    /// Rules for its jobs.
    pub policy: JobPolicy,
}

/// Access and rules that hold now.
pub(super) struct AccessPolicy {
    token_sha256: Zeroizing<String>,
    pub(super) orchestrator: Option<OrchestratorId>,
    /// Time limit of a job that names none, in seconds.
    pub(super) default_timeout_seconds: u64,
    pub(super) policy: JobPolicy,
}

impl AccessPolicy {
    /// The granted access, within the limits of this machine's operator.
    pub(super) fn new(access: AccessGrant, settings: &Settings) -> Self {
        let AccessGrant {
            token,
            orchestrator,
            mut policy,
        } = access;
        policy.allowed_images.push(settings.allowed_images.clone());
        let most = settings.max_timeout;
        let seconds = most.map_or(DEFAULT_MAX_TIMEOUT_SECONDS, |most| most.as_secs());
        policy.max_timeout_seconds = policy
            .max_timeout_seconds
            .min(seconds)
            .min(MAX_TIMEOUT_SECONDS);
        policy.max_request_bytes = policy
            .max_request_bytes
            .min(settings.max_request_bytes.unwrap_or(usize::MAX))
            .min(MAX_BODY_BYTES);
        Self {
            token_sha256: Zeroizing::new(sha256_hex(token.as_str())),
            orchestrator,
            default_timeout_seconds: settings
                .default_timeout
                .map_or(DEFAULT_TIMEOUT_SECONDS, |default| default.as_secs()),
            policy,
        }
    }

    /// Time limit in force for a job that asks for `asked` seconds.
    pub(super) fn effective_timeout_seconds(&self, asked: Option<u64>) -> u64 {
        let asked = asked.unwrap_or(self.default_timeout_seconds);
        asked.min(self.policy.max_timeout_seconds)
    }

    /// Whether the request shows the token.
    pub(super) fn is_authorized(&self, request: &Request) -> bool {
        request.bearer().is_some_and(|shown| {
            let shown = sha256_hex(shown);
            shown.as_bytes().ct_eq(self.token_sha256.as_bytes()).into()
        })
    }
}
