//! Log lines for nodes that go offline and come back.
//!
//! A node goes offline by silence, so no request shows it. The status of all nodes, as users see it, is
//! compared with the status at the last comparison.

use super::AppState;
use crate::{
    api::nodes::{NodeStatus, NodeView},
    http::server::{Shutdown, shutdown_requested},
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Interval between comparisons.
const COMPARE_INTERVAL: Duration = Duration::from_secs(2);

/// Whether each node was offline at the last comparison, by slug.
#[derive(Default)]
struct Presence(HashMap<String, bool>);

/// Change of one node since the last comparison.
#[derive(Clone, PartialEq, Eq, Debug)]
enum PresenceChange {
    WentOffline { slug: String, reason: String },
    CameBack { slug: String },
}

impl Presence {
    /// Compares with the last status, and keeps the new one. A node that is new here, as all are after a start,
    /// has not changed.
    fn update(&mut self, nodes: &[NodeView]) -> Vec<PresenceChange> {
        let now = nodes.iter().map(|node| {
            let is_offline = node.status == NodeStatus::Offline;
            (node.node_slug.clone(), is_offline)
        });
        let before = std::mem::replace(&mut self.0, now.collect());
        let changes = nodes.iter().filter_map(|node| {
            let was_offline = *before.get(&node.node_slug)?;
            let slug = node.node_slug.clone();
            match (was_offline, node.status == NodeStatus::Offline) {
                (false, true) => Some(PresenceChange::WentOffline {
                    slug,
                    reason: node.reason.clone().unwrap_or_default(),
                }),
                (true, false) => Some(PresenceChange::CameBack { slug }),
                _ => None,
            }
        });
        changes.collect()
    }
}

/// Logs changes until `shutdown`.
pub(super) async fn run(state: Arc<AppState>, shutdown: Shutdown) {
    tokio::select! {
        () = watch(&state) => {}
        () = shutdown_requested(shutdown) => {}
    }
}

async fn watch(state: &AppState) {
    let mut presence = Presence::default();
    loop {
        // A database that can't be read is logged by itself.
        if let Ok(nodes) = state.node_views().await {
            for change in presence.update(&nodes) {
                match change {
                    PresenceChange::WentOffline { slug, reason } => {
                        tracing::warn!(node = slug, reason, "node is offline");
                    }
                    PresenceChange::CameBack { slug } => {
                        tracing::info!(node = slug, "node is back")
                    }
                }
            }
        }
        tokio::time::sleep(COMPARE_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nodes(all: &[(&str, &str)]) -> Vec<NodeView> {
        let node = |(slug, status): &(&str, &str)| {
            let reason = format!("is {status}");
            let node = json!({
                "node_slug": slug, "status": status, "reason": reason, "labels": [], "config_version": "1",
                "config_stale": false, "last_seen_at": "2026-01-01T00:00:00Z", "running_jobs": 0,
                "max_concurrency": 1,
            });
            serde_json::from_value(node).unwrap()
        };
        all.iter().map(node).collect()
    }

    #[test]
    fn each_change_is_reported_once() {
        let mut presence = Presence::default();
        let mut update = |all: &[(&str, &str)]| presence.update(&nodes(all));
        assert_eq!(update(&[("a", "ready"), ("b", "offline")]), [], "a start");
        let gone = PresenceChange::WentOffline {
            slug: "a".to_owned(),
            reason: "is offline".to_owned(),
        };
        let back = |slug: &str| PresenceChange::CameBack {
            slug: slug.to_owned(),
        };
        assert_eq!(update(&[("a", "offline"), ("b", "offline")]), [gone]);
        assert_eq!(update(&[("a", "offline"), ("b", "draining")]), [back("b")]);
        // Node `a` was removed, and `c` is new.
        assert_eq!(update(&[("b", "ready"), ("c", "ready")]), []);
        assert_eq!(update(&[("a", "ready"), ("b", "not_ready")]), []);
    }
}
