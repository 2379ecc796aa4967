//! Capability report of a node (contract, section 3).

use super::{Inference, Reach};
use crate::api::{
    lenient::{default_true, invalid_as_default, is_default, null_as_default, null_as_true},
    time::Time,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most graphics processors in a report.
pub const MAX_DEVICES: usize = 64;
/// Longest warning in a report, in bytes.
pub const MAX_WARNING_BYTES: usize = 1024;

/// Capability report: hardware, software and limits of a node.
///
/// Required are the version and the slug. Other implementations leave out what they don't know; fields that are
/// present have to be valid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CapabilityReport {
    /// Payload version, 1.
    pub version: u64,
    /// Time of the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_at: Option<Time>,
    /// Identity of the node.
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

/// Identity of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Slug: `[a-z0-9][a-z0-9-]{0,62}`.
    pub node_slug: String,
    /// Random id of the process, made at each start, which reveals two machines with copies of one data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels, which tasks can require.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Time when the node was asked to stop, by its own clock; absent while it serves. Its jobs go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping_since: Option<Time>,
}

/// Operating system.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Platform {
    /// Name, such as `linux`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    /// Distribution, such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Architecture by Go's name, such as `amd64`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub arch: String,
    /// Kernel, such as `6.1.0-18-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
}

/// Container engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRuntime {
    /// Name: `podman`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub runtime: String,
    /// Version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it can run rootless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless_supported: Option<bool>,
    /// Whether it runs rootless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless_enabled: Option<bool>,
}

/// CPU and memory.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Compute {
    /// Model of the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Number of logical processors.
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
    /// Whether there is one; `true` where the object does not say.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub present: bool,
    /// Devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<GpuDevice>>,
}

/// Graphics processor.
#[derive(Clone, Default, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GpuDevice {
    /// Id by which a job asks for the device in `gpus`, such as `0`; absent where jobs can't have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether a job has the device now.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub busy: bool,
    /// Vendor: `nvidia` or `amd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Model, such as `NVIDIA H100 80GB HBM3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Id of the device by its vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mb: Option<u64>,
    /// Further facts, kept as sent up to 2048 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<serde_json::Value>,
}

/// Sandboxes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxCapability {
    /// Whether the node runs sandboxes; `true` where the object does not say.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub supported: bool,
    /// Features of the sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// Number of job slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// Slots that are occupied by jobs of other orchestrators.
    #[serde(default, skip_serializing_if = "is_default")]
    pub other_jobs: u32,
    /// Longest time limit that the node allows to a job, in seconds; 10800 where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_timeout_seconds: Option<u64>,
    /// Time limit of a job that names none, in seconds; 3600 where the node does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_timeout_seconds: Option<u64>,
    /// Patterns of the images that the node's operator allows; all where there is none.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub allowed_images: Vec<String>,
    /// Images of `localhost/` that the node has; some of them where there are many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_images: Option<Vec<String>>,
    /// Jobs of this orchestrator that wait for their images and occupy no slot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pulling_jobs: u32,
    /// Sandboxes that wait for jobs; absent where the node keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<WarmCounts>,
    /// Reason why `supported` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Warnings for the operator; the node accepts jobs.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub warnings: Vec<String>,
}

/// Sandboxes of a node that are started and wait for jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WarmCounts {
    /// Those that are ready.
    pub ready: u32,
    /// Most that the node keeps.
    pub max: u32,
}

/// Network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkCapability {
    /// Whether the node reaches the orchestrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orchestrator_reachable: Option<bool>,
    /// Outbound network policy of sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_policy: Option<String>,
}

/// Worker API of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerApi {
    /// URL for the orchestrator; empty where the node does not know one, or does not listen.
    #[serde(default, deserialize_with = "null_as_default")]
    pub base_url: String,
    /// Whether the node serves it on the connection that it opens to the orchestrator.
    #[serde(
        default,
        deserialize_with = "invalid_as_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub tunnel: bool,
    /// Addresses that the URL may lead to. The orchestrator sets it by the origin of the report and ignores the
    /// value that a node sends.
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
    /// Status of the trust material.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_material_status: Option<String>,
}
