//! Configurations of nodes: what each was served, and what it acknowledged.
//!
//! A configuration carries the Worker API token of one registration. A node that registered again goes on
//! with the token that it has until it is served another one, and with either until it acknowledges that.

use super::{
    Node, Store, StoreError,
    rows::{parse_document, to_document},
};
use crate::api::{
    NodeId,
    nodes::{AckError, AckStatus, ConfigAck, NodeConfig},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

/// Configuration that a node was last served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServedConfig {
    /// Its content, without version and dates. The SHA-256 of the token stands for the token.
    pub content: NodeConfig,
    /// The registration whose token it carries.
    pub registration: i64,
    /// First version that carried this token.
    pub token_since: i64,
    /// The registration whose token the node applied last, where that is an older one.
    pub applied: Option<i64>,
}

impl ServedConfig {
    /// Reads a column. An older release stored the content alone, and knew no registrations.
    fn read(column: &str) -> Result<Self, StoreError> {
        if let Ok(served) = parse_document(column) {
            return Ok(served);
        }
        Ok(Self {
            content: parse_document(column)?,
            registration: 0,
            token_since: 1,
            applied: None,
        })
    }

    fn token_sha256(&self) -> &str {
        &self.content.worker_api.orchestrator_bearer_token
    }
}

impl Node {
    /// What the node was last served; nothing where that can't be read any more.
    pub fn served_config(&self) -> Option<ServedConfig> {
        ServedConfig::read(self.config.as_deref()?).ok()
    }
}

/// How it went to store an acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckOutcome {
    /// It is stored; whether it is the first one of its version.
    Stored {
        /// Whether the node has acknowledged no such version just before.
        is_first: bool,
    },
    /// The node was never served that version.
    NeverServed,
    /// That version carried a token that was replaced since.
    Replaced,
    /// There is no such node, or it has registered again.
    Unregistered,
}

/// What is stored of a node's configuration.
struct State {
    registration: i64,
    served: Option<ServedConfig>,
    version: i64,
    ack_version: Option<i64>,
    is_applied: bool,
}

impl State {
    fn read(c: &Connection, id: NodeId) -> Result<Option<Self>, StoreError> {
        let sql = "SELECT registration, config, config_version, ack_version, ack_status FROM nodes WHERE id = ?1";
        let row = c.query_row(sql, [id], |row| {
            let served: Option<String> = row.get(1)?;
            let ack_status: Option<String> = row.get(4)?;
            let state = Self {
                registration: row.get(0)?,
                served: None,
                version: row.get(2)?,
                ack_version: row.get(3)?,
                is_applied: ack_status.as_deref() == Some(AckStatus::Applied.as_str()),
            };
            Ok((state, served))
        });
        let Some((state, served)) = row.optional()? else {
            return Ok(None);
        };
        let served = served.as_deref().map(ServedConfig::read).transpose()?;
        Ok(Some(Self { served, ..state }))
    }

    /// The registration whose token the node applied last, once it is served this content.
    fn applied(&self, served: &ServedConfig) -> Option<i64> {
        let has_applied = self.is_applied && self.ack_version >= Some(served.token_since);
        if has_applied {
            Some(served.registration)
        } else {
            served.applied
        }
    }
}

impl Store {
    /// Notes what a node of this registration is served, and raises its version when that differs from the
    /// last time; `None` when there is no such node, or it has registered again.
    pub async fn node_config_serve(
        &self,
        id: NodeId,
        registration: i64,
        content: NodeConfig,
    ) -> Result<Option<i64>, StoreError> {
        self.write(move |c| {
            let Some(state) = State::read(c, id)? else {
                return Ok(None);
            };
            if state.registration != registration {
                return Ok(None);
            }
            let mut next = ServedConfig {
                content: content.clone(),
                registration,
                token_since: state.version + 1,
                applied: None,
            };
            if let Some(before) = &state.served {
                if before.registration == registration
                    && to_document(&before.content)? == to_document(&content)?
                {
                    return Ok(Some(state.version));
                }
                if before.token_sha256() == next.token_sha256() {
                    (next.token_since, next.applied) = (before.token_since, before.applied);
                } else {
                    next.applied = state.applied(before);
                }
            }
            c.execute(
                "UPDATE nodes SET config = ?2, config_version = config_version + 1 WHERE id = ?1",
                params![id, to_document(&next)?],
            )?;
            Ok(Some(state.version + 1))
        })
        .await
    }

    /// Stores an acknowledgement of version `version` by a node of this registration.
    pub async fn node_ack(
        &self,
        id: NodeId,
        registration: i64,
        version: i64,
        ack: ConfigAck,
        now: Time,
    ) -> Result<AckOutcome, StoreError> {
        self.write(move |c| {
            let Some(state) = State::read(c, id)?.filter(|state| state.registration == registration) else {
                return Ok(AckOutcome::Unregistered);
            };
            let Some(served) = state.served.filter(|_| (1..=state.version).contains(&version)) else {
                return Ok(AckOutcome::NeverServed);
            };
            if version < served.token_since {
                return Ok(AckOutcome::Replaced);
            }
            let error = ack.error.as_ref().map(AckError::to_stored);
            c.execute(
                "UPDATE nodes SET ack_version = ?2, ack_status = ?3, ack_error = ?4, ack_at = ?5, last_seen_at = ?5
                 WHERE id = ?1",
                params![id, version, ack.status.as_str(), error, now],
            )?;
            if served.applied.is_some() && ack.status == AckStatus::Applied {
                let served = ServedConfig { applied: None, ..served };
                c.execute("UPDATE nodes SET config = ?2 WHERE id = ?1", params![id, to_document(&served)?])?;
            }
            let is_first = state.ack_version != Some(version);
            Ok(AckOutcome::Stored { is_first })
        })
        .await
    }
}

/// Ends the tokens of earlier registrations, since the node's Worker API is somewhere else now: whoever
/// registered again, and may not be the machine of before, must not be shown them.
pub(super) fn revoke_older_tokens(c: &Connection, id: NodeId) -> Result<(), StoreError> {
    let Some(state) = State::read(c, id)? else {
        return Ok(());
    };
    match state.served {
        Some(served) if served.registration != state.registration => {
            c.execute(
                "UPDATE nodes SET config = NULL, ack_version = NULL, ack_status = NULL, ack_error = NULL, ack_at = NULL
                 WHERE id = ?1",
                [id],
            )?;
        }
        Some(served) if served.applied.is_some() => {
            let served = ServedConfig {
                applied: None,
                ..served
            };
            let sql = "UPDATE nodes SET config = ?2 WHERE id = ?1";
            c.execute(sql, params![id, to_document(&served)?])?;
        }
        _ => {}
    }
    Ok(())
}
