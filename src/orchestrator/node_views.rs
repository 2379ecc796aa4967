//! Nodes as users see them, and whether they may be given jobs.

use super::{
    Orchestrator, control_plane,
    node_words::clean,
    readiness::{self, Standing},
};
use crate::{
    api::{
        nodes::{NodeStatus, NodeView},
        problem::Problem,
        time::Time,
    },
    identity::store_problem,
    store::Node,
};
use tokio::time::Instant;

impl Orchestrator {
    /// Whether a node may be given jobs now.
    pub(super) fn may_be_given_jobs(&self, node: &Node, now: Time) -> bool {
        self.standing(node, now).status == NodeStatus::Ready && !self.avoided.has(node.id)
    }

    /// Where a node stands, whatever came of the last jobs that it was offered.
    fn standing(&self, node: &Node, now: Time) -> Standing {
        if self.instances.has_duplicate(&node.id, Instant::now()) {
            return Standing::refuses(readiness::DUPLICATE);
        }
        let heard = self.liveness.heard(node);
        readiness::standing(node, self.worker_url(node), &heard, now)
    }

    /// A node as users see it: with its own words where they are admins.
    pub(super) fn node_view(&self, node: Node, is_for_admin: bool) -> NodeView {
        let url = self.worker_url(&node).map(str::to_owned);
        let now = Time::now();
        let heard = self.liveness.heard(&node);
        let mut standing = self.standing(&node, now);
        if standing.status == NodeStatus::Ready
            && let Some(why) = self.avoided.why(node.id)
        {
            standing = Standing::refuses(why);
        }
        let mut reason = standing.reason.map(|reason| {
            if is_for_admin {
                reason.full()
            } else {
                reason.public(&node.slug)
            }
        });
        let stale = control_plane::is_stale(self, &node);
        let report = &node.capability;
        if reason.is_none() {
            let unused = || self.slots.unused(report.max_concurrency());
            reason = readiness::other_jobs(report)
                .or_else(unused)
                .or_else(|| stale.then(|| readiness::STALE.to_owned()));
        }
        let warnings = report.warnings().iter().filter(|_| is_for_admin);
        NodeView {
            warnings: warnings.map(|words| clean(words)).collect(),
            status: standing.status,
            reason,
            worker_api_target_url: url,
            config_stale: stale,
            config_version: node.config_version.to_string(),
            acked_config_version: node.ack_version.map(|version| version.to_string()),
            ack_status: node.ack_status,
            last_seen_at: heard.at,
            running_jobs: node.running_jobs,
            max_concurrency: self.slots.of_node(report.max_concurrency()),
            labels: report.node.labels.clone().unwrap_or_default(),
            name: report.node.name.clone(),
            gpu: report.gpu.clone(),
            inference: report.inference.clone(),
            node_slug: node.slug,
        }
    }

    /// All nodes as everybody may see them.
    pub(super) async fn node_views(&self) -> Result<Vec<NodeView>, Problem> {
        self.node_views_for(false).await
    }

    pub(super) async fn node_views_for(
        &self,
        is_for_admin: bool,
    ) -> Result<Vec<NodeView>, Problem> {
        let nodes = self.store.node_list().await.map_err(store_problem)?;
        let view = |node| self.node_view(node, is_for_admin);
        Ok(nodes.into_iter().map(view).collect())
    }
}
