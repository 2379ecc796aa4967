//! Credentials of nodes: the pre-shared key, tokens, and the rate of new ones.

use super::{
    Identity,
    throttle::{Attempt, ThrottleKey},
    tokens,
};
use crate::{
    api::{NodeId, error::ApiError, problem::Problem, time::Time},
    digest::sha256_hex,
    network::client_network,
};
use std::net::IpAddr;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// A wrong pre-shared key, which counts as a guess once this is dropped.
pub struct WrongPsk {
    attempt: Attempt,
}

impl WrongPsk {
    /// Counts the guess, and returns the problem for the caller.
    pub fn refuse(self, from: IpAddr) -> Problem {
        tracing::warn!(address = %from, "registration with a wrong pre-shared key refused");
        Problem::unauthorized(
            "the pre-shared key is wrong or outdated; copy the current one from keys/psk in the orchestrator's \
             data directory, or from its --psk-file",
        )
    }
}

impl Identity {
    /// Checks the pre-shared key of a registration.
    pub fn check_psk(&self, psk: &str, from: IpAddr) -> Result<(), Problem> {
        let shown = self.verify_psk(psk, from)?;
        shown.map_err(|wrong| wrong.refuse(from))
    }

    /// Verifies a pre-shared key. A wrong one counts as a guess, unless the same request shows the right
    /// one as well ([`verify_other_psk`](Self::verify_other_psk)). Fails while the address has to wait.
    pub fn verify_psk(&self, psk: &str, from: IpAddr) -> Result<Result<(), WrongPsk>, Problem> {
        let admitted = self.registrations.admit(vec![ThrottleKey::address(from)]);
        let attempt = admitted.map_err(|problem| {
            let why = "nodes at this address have shown a wrong pre-shared key, this node or others; give the \
                       current key to each of them";
            let detail = format!("{}: {why}", problem.detail);
            Problem { detail, ..problem }
        })?;
        if !self.is_psk(psk) {
            return Ok(Err(WrongPsk { attempt }));
        }
        attempt.succeed();
        Ok(Ok(()))
    }

    /// Checks another key of a request that has already shown a wrong one.
    pub fn verify_other_psk(
        &self,
        wrong: WrongPsk,
        psk: &str,
        from: IpAddr,
    ) -> Result<(), Problem> {
        if !self.is_psk(psk) {
            return Err(wrong.refuse(from));
        }
        wrong.attempt.succeed();
        Ok(())
    }

    fn is_psk(&self, psk: &str) -> bool {
        // Digests have equal lengths, which a comparison in constant time needs.
        let (shown, expected) = (sha256_hex(psk), sha256_hex(self.keys.psk()));
        shown.as_bytes().ct_eq(expected.as_bytes()).into()
    }

    /// Admits the first registration of a node from this address, or returns how long to wait.
    pub fn admit_new_node(&self, from: IpAddr) -> Result<(), Problem> {
        self.new_nodes.admit_or(client_network(from), |seconds| {
            format!(
                "too many new nodes register from this address; wait {seconds} s and register again \
                 (nodes that are already known are not limited)"
            )
        })
    }

    /// Pre-shared key, for a node in the same process.
    pub fn psk(&self) -> Zeroizing<String> {
        Zeroizing::new(self.keys.psk().to_owned())
    }

    /// Token for this registration of a node, and the time at which it expires.
    pub fn node_token(&self, node: NodeId, registration: i64) -> Result<(String, Time), ApiError> {
        tokens::issue_node(&self.keys, node, registration)
    }

    /// Node and registration that a bearer token was issued for.
    pub fn node(&self, bearer: Option<&str>) -> Result<(NodeId, i64), Problem> {
        bearer
            .and_then(|token| tokens::check_node(&self.keys, token))
            .ok_or_else(|| {
                Problem::unauthorized(
                    "the node's token is missing, invalid or expired; register again",
                )
            })
    }

    /// Token that the orchestrator shows to this node's Worker API, as delivered after this registration.
    pub fn worker_token(&self, node: NodeId, registration: i64) -> String {
        tokens::worker_bearer(&self.keys, node, registration)
    }
}
