//! What a machine is and can do.

use super::Reach;
use crate::api::{
    lenient::{default_true, invalid_as_default, null_as_default, null_as_true},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Graphics processors in a report.
pub const MAX_DEVICES: usize = 64;
/// Bytes of a warning in a report.
pub const MAX_WARNING_BYTES: usize = 1024;

/// What a machine is and can do.
///
/// Needed of it are the version and the slug. Other implementations leave out what they don't know; a field
/// that is there has to be right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CapabilityReport {
    /// Payload version, 1.
    pub version: u64,
    /// When this was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_at: Option<Time>,
    /// Who it is.
    pub node: NodeInfo,
    /// Operating system.
    #[serde(default, deserialize_with = "null_as_default")]
    pub platform: Platform,
    /// Container engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<ContainerRuntime>,
    /// CPU and memory.
    #[serde(default, deserialize_with = "null_as_default")]
    pub compute: Compute,
    /// Graphics processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxCapability>,
    /// Network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkCapability>,
    /// Model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<Inference>,
    /// The Worker API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api: Option<WorkerApi>,
    /// TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// Who a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `[a-z0-9][a-z0-9-]{0,62}`.
    pub node_slug: String,
    /// Random id of the process, made at each start, by which two machines with one data directory are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What tasks may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// When the node was asked to stop, by its own clock; absent while it serves. What it still runs goes
    /// on without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping_since: Option<Time>,
}

/// Operating system.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `linux`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    /// Such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Such as `amd64`: the name that Go has for it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub arch: String,
    /// Such as `6.1.0-18-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
}

/// Container engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRuntime {
    /// `podman`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub runtime: String,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it could run without root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless_supported: Option<bool>,
    /// Whether it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless_enabled: Option<bool>,
}

/// CPU and memory.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Compute {
    /// As the processor names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Logical processors.
    #[serde(default, deserialize_with = "null_as_default")]
    pub cpu_cores: u32,
    /// Memory in MiB.
    #[serde(default, deserialize_with = "null_as_default")]
    pub ram_mb: u64,
    /// Free space under the data directory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_free_mb: Option<u64>,
}

/// Graphics processors.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// Whether there is one; an object that doesn't say it means it.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub present: bool,
    /// Which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<GpuDevice>>,
}

/// One graphics processor.
#[derive(Clone, Default, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GpuDevice {
    /// `nvidia` or `amd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Such as `NVIDIA H100 80GB HBM3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The vendor's id of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mb: Option<u64>,
    /// Free-form facts, kept as sent within the size limit of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<serde_json::Value>,
}

/// Sandboxes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxCapability {
    /// Whether this node runs any; an object that doesn't say it means it.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub supported: bool,
    /// What they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// Jobs at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// Slots that jobs of other orchestrators occupy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub other_jobs: u32,
    /// Jobs of the orchestrator that gets the report that wait for their images and occupy no slot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pulling_jobs: u32,
    /// Why `supported` is false, in the node's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What an operator should know of, though the node takes jobs.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub warnings: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkCapability {
    /// Whether the orchestrator answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_reachable: Option<bool>,
    /// What sandboxes may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_policy: Option<String>,
}

/// Model server.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Inference {
    /// Whether this node serves models at all; an object that doesn't say it means it.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub supported: bool,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Whether it answers now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<bool>,
    /// Whether it was there before us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing_service: Option<bool>,
    /// Models it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
}

/// The Worker API of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerApi {
    /// Where the orchestrator reaches it; empty where the node can't tell.
    #[serde(default, deserialize_with = "null_as_default")]
    pub base_url: String,
    /// Addresses at which it may be. Set by the orchestrator by where the report came from, whatever a node
    /// sends here.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "Reach::is_routable"
    )]
    pub reach: Reach,
}

/// TLS.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tls {
    /// What trust material there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_material_status: Option<String>,
}

impl CapabilityReport {
    /// What the node's operator should know of.
    pub fn warnings(&self) -> &[String] {
        self.sandbox
            .as_ref()
            .map_or(&[], |sandbox| &sandbox.warnings)
    }

    /// Where the node says that its Worker API is.
    pub fn worker_url(&self) -> Option<&str> {
        let api = self.worker_api.as_ref()?;
        Some(api.base_url.as_str()).filter(|url| !url.is_empty())
    }

    /// Addresses at which the Worker API may be.
    pub fn reach(&self) -> Reach {
        self.worker_api
            .as_ref()
            .map_or_else(Reach::default, |api| api.reach)
    }

    /// Jobs that the node takes at the same time from the orchestrator that it reports to, those that wait for
    /// images among them; as many as it has processors where it doesn't say.
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
        // No more than it has: what is waited for will need slots, too.
        slots
            .saturating_sub(others)
            .saturating_add(pulling.min(slots))
    }

    /// Whether jobs of other orchestrators occupy every slot of the node.
    pub fn is_full_with_other_jobs(&self) -> bool {
        let runs_others = |sandbox: &SandboxCapability| sandbox.supported && sandbox.other_jobs > 0;
        self.max_concurrency() == 0 && self.sandbox.as_ref().is_some_and(runs_others)
    }
}
