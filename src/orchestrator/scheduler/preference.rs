//! Preference of a job among the nodes that fit it.
//!
//! A node that can't run the image, by its report, is not asked while another one is free. It is asked where it is the
//! only one: a report may be older than the node's images, and a refusal gives the user the node's own words.

use super::free_slots::Candidate;
use crate::{
    api::{NodeId, image::ImageRef},
    store::JobDetails,
};
use std::{cmp::Reverse, collections::HashSet};

/// Preference of one job; by default none.
#[derive(Debug, Default)]
pub(super) struct Preference<'a> {
    image: Option<ImageRef>,
    never_pulls: bool,
    nodes_without_room: &'a [NodeId],
    timeout_seconds: Option<u64>,
    /// Nodes that ran the image before.
    image_nodes: Option<&'a HashSet<NodeId>>,
}

/// Order of nodes, the best first: image, room, time limit.
pub(super) type Fitness = (bool, bool, Reverse<u64>);

impl<'a> Preference<'a> {
    pub(super) fn new(details: &'a JobDetails, image_nodes: Option<&'a HashSet<NodeId>>) -> Self {
        Self {
            image: details.image.parse().ok(),
            never_pulls: details.never_pulls,
            nodes_without_room: &details.nodes_without_room,
            timeout_seconds: details.timeout_seconds,
            image_nodes,
        }
    }

    /// Fitness, which counts more than the load of a node: whether it can't run the image, whether it had no
    /// room for the job's files lately, and the time that it allows.
    pub(super) fn fitness(&self, node: &Candidate) -> Fitness {
        let seconds = node.report.effective_timeout_seconds(self.timeout_seconds);
        let seconds = self.timeout_seconds.map_or(0, |_| seconds);
        let lacks_room = self.nodes_without_room.contains(&node.id);
        (self.denies_image(node), lacks_room, Reverse(seconds))
    }

    /// Whether the node probably has to pull the image; counts less than its load.
    pub(super) fn lacks_image(&self, node: &Candidate) -> bool {
        self.image_nodes
            .is_none_or(|nodes| !nodes.contains(&node.id))
    }

    fn denies_image(&self, node: &Candidate) -> bool {
        let (Some(image), Some(sandbox)) = (&self.image, &node.report.sandbox) else {
            return false;
        };
        let local = sandbox.local_images.as_ref();
        let is_missing = |images: &Vec<String>| images.iter().all(|name| name != image.as_str());
        let lacks_image = if image.is_local() {
            local.is_some_and(is_missing)
        } else {
            self.never_pulls && self.lacks_image(node)
        };
        lacks_image || !image.is_allowed_by(&sandbox.allowed_images)
    }
}
