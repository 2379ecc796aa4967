//! Configurations of nodes: the one that each node was served, and the version that it acknowledged.
//!
//! A configuration carries the Worker API token of one registration. A node that registers again keeps using
//! its token until it is served another one, and may use either until it acknowledges the new one.

use super::{AckOutcome, ServedConfig, Store, StoreError, rows::to_document};
use crate::api::{
    NodeId,
    nodes::{AckError, AckStatus, ConfigAck, NodeConfig},
    time::Time,
};
use rusqlite::{Connection, OptionalExtension as _, params};

/// Stored state of a node's configuration.
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
        let served = served.as_deref().map(ServedConfig::parse).transpose()?;
        Ok(Some(Self { served, ..state }))
    }

    /// Registration whose token the node applied last, once it is served this content.
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
    /// Stores the configuration that a node is served, and returns its version, which is a new one when the
    /// content differs from the last. `None` when no node has this registration.
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

    /// Stores the acknowledgement of a version by a node of this registration.
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

/// Revokes the tokens of earlier registrations when the URL of the Worker API changes: the node may be another
/// machine now, which must not be sent them.
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
