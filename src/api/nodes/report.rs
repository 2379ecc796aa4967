//! Questions about a capability report, with the answers for nodes that don't say.

use super::{CapabilityReport, Reach, SandboxCapability, features};
use crate::api::jobs::{DEFAULT_MAX_TIMEOUT_SECONDS, DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS};

/// Time limit of a job at a node that reports these limits, in seconds, by what its task asked for.
pub fn effective_timeout_seconds(
    asked: Option<u64>,
    default: Option<u64>,
    most: Option<u64>,
) -> u64 {
    let asked = asked.or(default).unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    asked
        .min(most.unwrap_or(DEFAULT_MAX_TIMEOUT_SECONDS))
        .min(MAX_TIMEOUT_SECONDS)
}

impl CapabilityReport {
    /// Features of the sandboxes.
    pub fn features(&self) -> &[String] {
        let sandbox = self.sandbox.as_ref();
        let features = sandbox.and_then(|sandbox| sandbox.features.as_deref());
        features.unwrap_or_default()
    }

    /// Whether the node reports a feature.
    pub fn has_feature(&self, feature: &str) -> bool {
        features::includes(self.features(), feature)
    }

    /// Whether the node lacks what a feature needs, though its release knows it.
    pub fn lacks_means(&self, feature: &str) -> bool {
        !self.has_feature(feature) && features::is_known(self.features(), feature)
    }

    /// Images of `localhost/` that the node names; `None` where it names none because it can't tell them all.
    pub fn local_images(&self) -> Option<&[String]> {
        let sandbox = self.sandbox.as_ref()?;
        sandbox.local_images.as_deref()
    }

    /// Whether the node names an image among those of `localhost/`.
    pub fn has_local_image(&self, image: &str) -> bool {
        let images = self.local_images().unwrap_or_default();
        images.iter().any(|known| known == image)
    }

    /// Longest time limit that the node allows, in seconds.
    pub fn max_timeout_seconds(&self) -> u64 {
        let reported = self
            .sandbox
            .as_ref()
            .and_then(|sandbox| sandbox.max_timeout_seconds);
        reported.unwrap_or(DEFAULT_MAX_TIMEOUT_SECONDS)
    }

    /// Time limit of a job at this node, in seconds, by what its task asked for.
    pub fn effective_timeout_seconds(&self, asked: Option<u64>) -> u64 {
        let sandbox = self.sandbox.as_ref();
        let default = sandbox.and_then(|sandbox| sandbox.default_timeout_seconds);
        let most = sandbox.and_then(|sandbox| sandbox.max_timeout_seconds);
        effective_timeout_seconds(asked, default, most)
    }

    /// Warnings for the operator.
    pub fn warnings(&self) -> &[String] {
        self.sandbox
            .as_ref()
            .map_or(&[], |sandbox| &sandbox.warnings)
    }

    /// URL of the Worker API, where the node names one.
    pub fn worker_url(&self) -> Option<&str> {
        let api = self.worker_api.as_ref()?;
        Some(api.base_url.as_str()).filter(|url| !url.is_empty())
    }

    /// Whether the node serves its Worker API on a tunnel.
    pub fn has_tunnel(&self) -> bool {
        self.worker_api.as_ref().is_some_and(|api| api.tunnel)
    }

    /// Addresses that the URL of the Worker API may lead to.
    pub fn reach(&self) -> Reach {
        self.worker_api
            .as_ref()
            .map_or_else(Reach::default, |api| api.reach)
    }

    /// Number of jobs that the node accepts from this orchestrator at a time, those that wait for images included.
    /// Defaults to the number of processors.
    pub fn max_concurrency(&self) -> u32 {
        let sandbox = self.sandbox.as_ref();
        if sandbox.is_some_and(|sandbox| !sandbox.supported) {
            return 0;
        }
        let slots = sandbox
            .and_then(|sandbox| sandbox.max_concurrency)
            .unwrap_or(self.compute.cpu_cores.max(1));
        let [others, pulling] =
            sandbox.map_or([0, 0], |sandbox| [sandbox.other_jobs, sandbox.pulling_jobs]);
        // At most as many as there are slots, since waiting jobs will need slots, too.
        slots
            .saturating_sub(others)
            .saturating_add(pulling.min(slots))
    }

    /// Whether jobs of other orchestrators occupy all slots.
    pub fn is_full_with_other_jobs(&self) -> bool {
        let runs_others = |sandbox: &SandboxCapability| sandbox.supported && sandbox.other_jobs > 0;
        self.max_concurrency() == 0 && self.sandbox.as_ref().is_some_and(runs_others)
    }
}
