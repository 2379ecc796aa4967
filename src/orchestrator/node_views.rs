//! Nodes as users see them, and whether they may be given jobs.

use super::{
    AppState, node_config,
    readiness::{self, NodeReadiness},
    reason::sanitize,
};
use crate::{
    api::{
        error::ApiError,
        nodes::{NodeStatus, NodeView},
        time::Time,
    },
    store::Node,
};
use tokio::time::Instant;

impl AppState {
    /// Whether a node may be given jobs now.
    pub(super) fn is_schedulable(&self, node: &Node, now: Time) -> bool {
        self.node_readiness(node, now).status == NodeStatus::Ready
            && !self.nodes.backoff.is_backing_off(node.id)
    }

    /// Where a node stands, whatever came of the last jobs that it was offered.
    fn node_readiness(&self, node: &Node, now: Time) -> NodeReadiness {
        if self.nodes.instances.has_duplicate(&node.id, Instant::now()) {
            return NodeReadiness::not_ready(readiness::DUPLICATE_REASON);
        }
        let heard = self.nodes.liveness.last_contact(node);
        readiness::node_readiness(node, self.worker_url(node), &heard, now)
    }

    /// A node as users see it: with its own words where they are admins.
    pub(super) fn node_view(&self, node: Node, is_for_admin: bool) -> NodeView {
        let url = self.worker_url(&node).map(str::to_owned);
        let now = Time::now();
        let heard = self.nodes.liveness.last_contact(&node);
        let mut readiness = self.node_readiness(&node, now);
        if readiness.status == NodeStatus::Ready
            && let Some(why) = self.nodes.backoff.reason(node.id)
        {
            readiness = NodeReadiness::not_ready(why);
        }
        let mut reason = readiness.reason.map(|reason| {
            if is_for_admin {
                reason.for_admins()
            } else {
                reason.for_users(&node.slug)
            }
        });
        let stale = node_config::is_stale(self, &node);
        let report = &node.capability;
        if reason.is_none() {
            let unused = || self.nodes.slots.describe_unused(report.max_concurrency());
            reason = readiness::foreign_jobs(report)
                .or_else(unused)
                .or_else(|| stale.then(|| readiness::STALE_CONFIG_REASON.to_owned()));
        }
        let warnings = report.warnings().iter().filter(|_| is_for_admin);
        NodeView {
            warnings: warnings.map(|words| sanitize(words)).collect(),
            status: readiness.status,
            reason,
            worker_api_target_url: url,
            config_stale: stale,
            config_version: node.config_version.to_string(),
            acked_config_version: node.ack_version.map(|version| version.to_string()),
            ack_status: node.ack_status,
            last_seen_at: heard.at,
            running_jobs: node.running_jobs,
            max_concurrency: self.nodes.slots.usable(report.max_concurrency()),
            labels: report.node.labels.clone().unwrap_or_default(),
            name: report.node.name.clone(),
            gpu: report.gpu.clone(),
            inference: report.inference.clone(),
            node_slug: node.slug,
        }
    }

    /// All nodes as everybody may see them.
    pub(super) async fn node_views(&self) -> Result<Vec<NodeView>, ApiError> {
        self.node_views_for(false).await
    }

    pub(super) async fn node_views_for(
        &self,
        is_for_admin: bool,
    ) -> Result<Vec<NodeView>, ApiError> {
        let nodes = self.store.node_list().await?;
        let view = |node| self.node_view(node, is_for_admin);
        Ok(nodes.into_iter().map(view).collect())
    }
}
