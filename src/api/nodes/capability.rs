//! What a machine is and can do.

use super::{
    Reach,
    rules::{MAX_LABELS, MAX_URL, check_label, check_slug, check_text, check_worker_url},
};
use crate::api::{
    check_version,
    problem::Problem,
    time::Time,
    tolerant::{if_readable, or_default, or_true, yes},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Graphics processors in a report.
pub const MAX_DEVICES: usize = 64;
const MAX_LIST: usize = 256;

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
    #[serde(default, deserialize_with = "or_default")]
    pub platform: Platform,
    /// Container engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<ContainerRuntime>,
    /// CPU and memory.
    #[serde(default, deserialize_with = "or_default")]
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
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// Such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Such as `amd64`: the name that Go has for it.
    #[serde(default, deserialize_with = "or_default")]
    pub arch: String,
    /// Such as `6.1.0-18-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
}

/// Container engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRuntime {
    /// `podman`.
    #[serde(default, deserialize_with = "or_default")]
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
    #[serde(default, deserialize_with = "or_default")]
    pub cpu_cores: u32,
    /// Memory in MiB.
    #[serde(default, deserialize_with = "or_default")]
    pub ram_mb: u64,
    /// Free space under the data directory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_free_mb: Option<u64>,
}

/// Graphics processors.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// Whether there is one; an object that doesn't say it means it.
    #[serde(default = "yes", deserialize_with = "or_true")]
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
    #[serde(default = "yes", deserialize_with = "or_true")]
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
    /// Why `supported` is false, in the node's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
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
    #[serde(default = "yes", deserialize_with = "or_true")]
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
    #[serde(default, deserialize_with = "or_default")]
    pub base_url: String,
    /// Addresses at which it may be. Set by the orchestrator by where the report came from, whatever a node
    /// sends here.
    #[serde(
        default,
        deserialize_with = "if_readable",
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
    /// Bounds and checks every field.
    pub fn check(&self, at: &str) -> Result<(), Problem> {
        check_version(at, self.version)?;
        check_slug(&format!("{at}/node/node_slug"), &self.node.node_slug)?;
        let labels = self.node.labels.as_deref().unwrap_or_default();
        if labels.len() > MAX_LABELS {
            return Err(Problem::field(
                &format!("{at}/node/labels"),
                format!("at most {MAX_LABELS} labels are possible"),
            ));
        }
        for (n, label) in labels.iter().enumerate() {
            check_label(&format!("{at}/node/labels/{n}"), label)?;
        }
        let runtime = self.container_runtime.as_ref();
        let inference = self.inference.as_ref();
        let texts = [
            ("node/name", self.node.name.as_deref()),
            ("platform/os", Some(self.platform.os.as_str())),
            ("platform/distro", self.platform.distro.as_deref()),
            ("platform/arch", Some(self.platform.arch.as_str())),
            (
                "platform/kernel_version",
                self.platform.kernel_version.as_deref(),
            ),
            (
                "container_runtime/runtime",
                runtime.map(|r| r.runtime.as_str()),
            ),
            (
                "container_runtime/version",
                runtime.and_then(|r| r.version.as_deref()),
            ),
            ("compute/cpu_model", self.compute.cpu_model.as_deref()),
            (
                "network/outbound_policy",
                self.network
                    .as_ref()
                    .and_then(|n| n.outbound_policy.as_deref()),
            ),
            (
                "sandbox/reason",
                self.sandbox.as_ref().and_then(|s| s.reason.as_deref()),
            ),
            ("inference/mode", inference.and_then(|i| i.mode.as_deref())),
            (
                "tls/trust_material_status",
                self.tls
                    .as_ref()
                    .and_then(|t| t.trust_material_status.as_deref()),
            ),
        ];
        for (field, text) in texts {
            check_text(&format!("{at}/{field}"), text)?;
        }
        self.check_lists(at)?;
        if let Some(url) = self.worker_url() {
            check_worker_url(&format!("{at}/worker_api/base_url"), url)?;
        }
        if self
            .sandbox
            .as_ref()
            .is_some_and(|s| s.max_concurrency == Some(0))
        {
            return Err(Problem::field(
                &format!("{at}/sandbox/max_concurrency"),
                "must be at least 1",
            ));
        }
        Ok(())
    }

    fn check_lists(&self, at: &str) -> Result<(), Problem> {
        let devices = self
            .gpu
            .as_ref()
            .and_then(|gpu| gpu.devices.as_deref())
            .unwrap_or_default();
        if devices.len() > MAX_DEVICES {
            return Err(Problem::field(
                &format!("{at}/gpu/devices"),
                format!("at most {MAX_DEVICES} devices are possible"),
            ));
        }
        for (n, device) in devices.iter().enumerate() {
            let at = format!("{at}/gpu/devices/{n}");
            check_text(&format!("{at}/vendor"), device.vendor.as_deref())?;
            check_text(&format!("{at}/model"), device.model.as_deref())?;
            check_text(&format!("{at}/device_id"), device.device_id.as_deref())?;
            if device
                .features
                .as_ref()
                .is_some_and(|features| features.to_string().len() > MAX_URL)
            {
                return Err(Problem::field(
                    &format!("{at}/features"),
                    format!("is longer than {MAX_URL} bytes"),
                ));
            }
        }
        let lists = [
            (
                "sandbox/features",
                self.sandbox.as_ref().and_then(|s| s.features.as_deref()),
            ),
            (
                "inference/models",
                self.inference.as_ref().and_then(|i| i.models.as_deref()),
            ),
        ];
        for (field, list) in lists {
            let list = list.unwrap_or_default();
            if list.len() > MAX_LIST {
                return Err(Problem::field(
                    &format!("{at}/{field}"),
                    format!("at most {MAX_LIST} entries are possible"),
                ));
            }
            for (n, text) in list.iter().enumerate() {
                check_text(&format!("{at}/{field}/{n}"), Some(text))?;
            }
        }
        Ok(())
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

    /// Jobs that the node runs at the same time for the orchestrator that it reports to; as many as it has
    /// processors where it doesn't say.
    pub fn max_concurrency(&self) -> u32 {
        let sandbox = self.sandbox.as_ref();
        if sandbox.is_some_and(|sandbox| !sandbox.supported) {
            return 0;
        }
        sandbox
            .and_then(|sandbox| sandbox.max_concurrency)
            .unwrap_or(self.compute.cpu_cores.max(1))
            .saturating_sub(sandbox.map_or(0, |sandbox| sandbox.other_jobs))
    }

    /// Whether jobs of other orchestrators occupy every slot of the node.
    pub fn is_full_of_others(&self) -> bool {
        let runs_others = |sandbox: &SandboxCapability| sandbox.supported && sandbox.other_jobs > 0;
        self.max_concurrency() == 0 && self.sandbox.as_ref().is_some_and(runs_others)
    }
}
