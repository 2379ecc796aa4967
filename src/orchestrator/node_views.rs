//! Views of nodes: readiness for the scheduler, and the view for users and admins.

use super::{
    AppState, drill,
    gpu_pool::GpuPool,
    node_config,
    readiness::{self, NodeReadiness},
    reason::sanitize,
    scheduler::Availability,
    waiting::NodeOutlook,
};
use crate::{
    api::{
        error::ApiError,
        nodes::{NodeStatus, NodeView},
        time::Time,
    },
    http::tunnel::TUNNEL_URL,
    store::Node,
};
use std::{collections::HashMap, sync::Arc};
use tokio::time::Instant;

impl AppState {
    /// Whether jobs may be scheduled on a node now.
    pub(super) fn availability(&self, node: &Node, now: Time) -> Availability {
        if self.node_readiness(node, now).status != NodeStatus::Ready {
            Availability::Unavailable
        } else if self.nodes.backoff.is_backing_off(node.id) {
            Availability::BackingOff
        } else {
            Availability::Ready
        }
    }

    /// Readiness of a node, regardless of jobs that it refused.
    pub(super) fn node_readiness(&self, node: &Node, now: Time) -> NodeReadiness {
        if self.settings.drill {
            return NodeReadiness::not_ready(drill::NODE_REASON);
        }
        if self.nodes.instances.has_duplicate(&node.id, Instant::now()) {
            return NodeReadiness::not_ready(readiness::DUPLICATE_REASON);
        }
        let contact = self.nodes.liveness.last_contact(node);
        let readiness = readiness::node_readiness(node, self.worker_url(node), &contact, now);
        match readiness.status {
            NodeStatus::Ready => self
                .reach_obstacle(node)
                .map_or(readiness, NodeReadiness::not_ready),
            _ => readiness,
        }
    }

    /// Reason for which a node gets no calls of models now; `None` where it may. A node without a free slot may.
    pub(super) fn model_obstacle(&self, node: &Node) -> Option<String> {
        if self.settings.drill {
            return Some(drill::NODE_REASON.to_owned());
        }
        if self.nodes.instances.has_duplicate(&node.id, Instant::now()) {
            return Some(readiness::DUPLICATE_REASON.to_owned());
        }
        let contact = self.nodes.liveness.last_contact(node);
        let url = self.worker_url(node);
        let reason = match readiness::call_obstacle(node, url, &contact, Time::now()) {
            Some(obstacle) => obstacle.reason?,
            None => self.reach_obstacle(node)?,
        };
        Some(reason.for_users(&node.slug))
    }

    /// View of a node whose running jobs have these graphics processors. Only admins see the node's own texts and its
    /// address.
    fn node_view(&self, node: Node, gpus: &GpuPool, is_for_admin: bool) -> NodeView {
        let now = Time::now();
        let contact = self.nodes.liveness.last_contact(&node);
        let mut readiness = self.node_readiness(&node, now);
        if readiness.status == NodeStatus::Ready
            && let Some(refusal) = self.nodes.backoff.reason(node.id)
        {
            readiness = NodeReadiness::not_ready(refusal);
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
        let warm = report.sandbox.as_ref().and_then(|sandbox| sandbox.warm);
        let warm = warm.filter(|_| readiness.status != NodeStatus::Offline);
        let mut inference = report.inference.clone();
        if let Some(text) = inference.as_mut().and_then(|known| known.reason.as_mut()) {
            let reason = readiness::model_server_reason(text);
            *text = if is_for_admin {
                reason.for_admins()
            } else {
                reason.for_users(&node.slug)
            };
        }
        NodeView {
            warnings: warnings.map(|text| sanitize(text)).collect(),
            status: readiness.status,
            reason,
            worker_api_target_url: self
                .listening_url(&node)
                .filter(|_| is_for_admin)
                .map(str::to_owned),
            via_tunnel: self.worker_url(&node) == Some(TUNNEL_URL),
            config_stale: stale,
            config_version: node.config_version.to_string(),
            acked_config_version: node.ack_version.map(|version| version.to_string()),
            ack_status: node.ack_status,
            last_seen_at: contact.at,
            running_jobs: node.running_jobs,
            max_concurrency: self.nodes.slots.usable(report.max_concurrency()),
            labels: report.node.labels.clone().unwrap_or_default(),
            name: report.node.name.clone(),
            gpu: report.gpu.clone(),
            gpus: gpus.counts(),
            warm,
            max_timeout_seconds: report
                .sandbox
                .is_some()
                .then(|| report.max_timeout_seconds()),
            inference,
            node_slug: node.slug,
        }
    }

    /// Views of all nodes for everybody.
    pub(super) async fn node_views(&self) -> Result<Vec<NodeView>, ApiError> {
        self.node_views_for(false).await
    }

    /// Views of all nodes, with the nodes' own texts for admins.
    pub(super) async fn node_views_for(
        &self,
        is_for_admin: bool,
    ) -> Result<Vec<NodeView>, ApiError> {
        let nodes = self.store.node_list().await?;
        let outlooks = self.outlooks(nodes, is_for_admin).await?;
        Ok(outlooks.into_iter().map(|node| node.view).collect())
    }

    /// View of one node.
    pub(super) async fn node_view_for(
        &self,
        node: Node,
        is_for_admin: bool,
    ) -> Result<Option<NodeView>, ApiError> {
        let outlooks = self.outlooks(vec![node], is_for_admin).await?;
        Ok(outlooks.into_iter().next().map(|node| node.view))
    }

    /// All nodes, as a task sees them that waits.
    pub(super) async fn node_outlooks(&self) -> Result<Vec<NodeOutlook>, ApiError> {
        let nodes = self.store.node_list().await?;
        self.outlooks(nodes, false).await
    }

    async fn outlooks(
        &self,
        nodes: Vec<Node>,
        is_for_admin: bool,
    ) -> Result<Vec<NodeOutlook>, ApiError> {
        let has_gpus = |node: &Node| GpuPool::new(&node.capability).total() > 0;
        let running = if nodes.iter().any(has_gpus) {
            self.store.gpu_requests().await?
        } else {
            HashMap::new()
        };
        let outlook = |node: Node| {
            let report = Arc::clone(&node.capability);
            let jobs = running.get(&node.id).into_iter().flatten();
            let gpus = GpuPool::new(&report).with_jobs(jobs);
            NodeOutlook {
                view: self.node_view(node, &gpus, is_for_admin),
                report,
                gpus,
            }
        };
        Ok(nodes.into_iter().map(outlook).collect())
    }
}
