//! Credentials of nodes: pre-shared keys, join tokens, tokens of registrations, and the rate of new nodes.

use super::{
    Identity,
    throttle::{Attempt, ThrottleKey},
    tokens,
};
use crate::{
    api::{JoinTokenId, NodeId, error::ApiError, problem::Problem, time::Time},
    digest::sha256_hex,
    network::client_network,
    secrets::check_random_secret,
    store::StoreError,
};
use std::net::IpAddr;
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

/// Credential that a registration has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeCredential {
    /// A pre-shared key.
    Psk,
    /// The secret of a join token, which may no longer let this node in.
    Token(JoinTokenId),
}

impl NodeCredential {
    /// Join token, unless it is a pre-shared key.
    pub fn token(self) -> Option<JoinTokenId> {
        match self {
            Self::Psk => None,
            Self::Token(token) => Some(token),
        }
    }
}

/// A wrong pre-shared key or join token, which counts as a guess once this is dropped.
pub struct WrongCredential {
    attempt: Attempt,
}

impl WrongCredential {
    /// Counts the guess, and returns the problem for the caller.
    pub fn refuse(self, from: IpAddr) -> Problem {
        tracing::warn!(address = %from, "registration with a wrong pre-shared key refused");
        Problem::unauthorized(
            "the pre-shared key is wrong or outdated; copy the current one from keys/psk in the orchestrator's \
             data directory, or from its --psk-file; a join token is another orchestrator's, or was removed long ago",
        )
    }
}

impl Identity {
    /// Checks the secret of a registration: a pre-shared key, or that of a join token.
    pub async fn check_credential(
        &self,
        secret: &str,
        from: IpAddr,
    ) -> Result<NodeCredential, ApiError> {
        let shown = self.verify_credential(secret, from).await?;
        Ok(shown.map_err(|wrong| wrong.refuse(from))?)
    }

    /// Verifies the secret of a registration. A wrong one counts as a guess, unless the same request shows a pre-shared
    /// key as well ([`verify_other_credential`](Self::verify_other_credential)). Fails while the address has to wait.
    pub async fn verify_credential(
        &self,
        secret: &str,
        from: IpAddr,
    ) -> Result<Result<NodeCredential, WrongCredential>, ApiError> {
        let admitted = self.registrations.admit(vec![ThrottleKey::address(from)]);
        let attempt = admitted.map_err(|problem| {
            let why = "nodes at this address have shown a wrong pre-shared key, this node or others; give the \
                       current key to each of them";
            let detail = format!("{}: {why}", problem.detail);
            Problem { detail, ..problem }
        })?;
        match self.find_credential(secret).await {
            Ok(Some(credential)) => {
                attempt.succeed();
                Ok(Ok(credential))
            }
            Ok(None) => Ok(Err(WrongCredential { attempt })),
            Err(error) => {
                attempt.discard();
                Err(error.into())
            }
        }
    }

    /// Checks another secret of a request that has already shown a wrong one. That one counts as a guess unless the
    /// other is a pre-shared key: many may hold a join token, also one that has ended, and none may guess with its help.
    pub async fn verify_other_credential(
        &self,
        wrong: WrongCredential,
        secret: &str,
        from: IpAddr,
    ) -> Result<NodeCredential, ApiError> {
        match self.find_credential(secret).await {
            Ok(Some(NodeCredential::Psk)) => {
                wrong.attempt.succeed();
                Ok(NodeCredential::Psk)
            }
            Ok(Some(token)) => {
                drop(wrong);
                Ok(token)
            }
            Ok(None) => Err(wrong.refuse(from).into()),
            Err(error) => {
                wrong.attempt.discard();
                Err(error.into())
            }
        }
    }

    async fn find_credential(&self, secret: &str) -> Result<Option<NodeCredential>, StoreError> {
        if self.is_psk(secret) {
            return Ok(Some(NodeCredential::Psk));
        }
        // Guesses that can't be secrets of tokens cost no read.
        if check_random_secret(secret).is_err() {
            return Ok(None);
        }
        let token = self.store.join_token_by_secret(sha256_hex(secret)).await?;
        Ok(token.map(NodeCredential::Token))
    }

    /// Whether this is one of the pre-shared keys. All are compared, so that the time tells nothing of which.
    fn is_psk(&self, psk: &str) -> bool {
        // Digests have equal lengths, which a comparison in constant time needs.
        let shown = sha256_hex(psk);
        let same = |key: &str| shown.as_bytes().ct_eq(sha256_hex(key).as_bytes());
        let keys = self.keys.psks().map(same);
        keys.fold(Choice::from(0u8), |found, same| found | same)
            .into()
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

    /// Newest pre-shared key, for a node in the same process.
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
