//! Nodes and the control plane: registration, capability, configuration, acknowledgement
//! (contract, section 3).
//!
//! Everything a node sends is hostile until checked: [`CapabilityReport::check`] bounds
//! every text and every list, so a stored report can't grow past a few kilobytes.

use super::{check_version, problem::Problem, time::Time};
use serde::{Deserialize, Serialize};

/// Most labels of a node, and of a task's wish.
pub const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 256;
const MAX_URL: usize = 2048;
const MAX_DEVICES: usize = 64;
const MAX_LIST: usize = 256;

/// Body of `POST /v1/nodes/register`.
#[derive(Serialize, Deserialize)]
pub struct Register {
    /// The pre-shared key.
    pub psk: String,
    /// What the machine is.
    pub capability: CapabilityReport,
}

/// Answer to a registration.
#[derive(Serialize, Deserialize)]
pub struct Bootstrap {
    /// Payload version, 1.
    pub version: u64,
    /// When this was made.
    pub issued_at: Time,
    /// Where to go from here.
    pub orchestrator: BootstrapOrchestrator,
    /// The node's credentials.
    pub auth: BootstrapAuth,
}

/// Where a node finds the control plane.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapOrchestrator {
    /// Root of all that follows.
    pub base_url: String,
    /// The URLs; a node uses these and no path of its own.
    pub endpoints: BootstrapEndpoints,
}

/// The URLs that a node uses.
#[derive(Clone, Serialize, Deserialize)]
pub struct BootstrapEndpoints {
    /// To register again.
    pub worker_registration_url: String,
    /// For capability reports.
    pub node_report_url: String,
    /// To get and to acknowledge the configuration.
    pub node_config_url: String,
}

/// A node's credentials.
#[derive(Serialize, Deserialize)]
pub struct BootstrapAuth {
    /// Bearer token for the control plane.
    pub node_jwt: String,
    /// When it ends.
    pub expires_at: Time,
}

/// What a machine is and can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CapabilityReport {
    /// Payload version, 1.
    pub version: u64,
    /// When this was measured.
    pub reported_at: Time,
    /// Who it is.
    pub node: NodeInfo,
    /// Operating system.
    pub platform: Platform,
    /// Container engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<ContainerRuntime>,
    /// CPU and memory.
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
}

/// Operating system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Such as `x86_64`.
    pub arch: String,
    /// Such as `6.1.0-18-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
}

/// Container engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRuntime {
    /// `podman`.
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compute {
    /// As the processor names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Logical processors.
    pub cpu_cores: u32,
    /// Memory in MiB.
    pub ram_mb: u64,
    /// Free space under the data directory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_free_mb: Option<u64>,
}

/// Graphics processors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gpu {
    /// Whether there is one.
    pub present: bool,
    /// Which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<GpuDevice>>,
}

/// One graphics processor.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// Whether this node runs any.
    pub supported: bool,
    /// What they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// Jobs at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inference {
    /// Whether this node serves models at all.
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
    /// Where the orchestrator reaches it.
    pub base_url: String,
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
        check_version(self.version)?;
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
        if let Some(api) = &self.worker_api {
            check_url(&format!("{at}/worker_api/base_url"), &api.base_url)?;
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

    /// Jobs that the node takes at the same time.
    pub fn max_concurrency(&self) -> u32 {
        match &self.sandbox {
            Some(sandbox) if sandbox.supported => sandbox
                .max_concurrency
                .unwrap_or(self.compute.cpu_cores.max(1)),
            _ => 0,
        }
    }
}

/// `[a-z0-9][a-z0-9-]{0,62}`.
pub fn check_slug(pointer: &str, slug: &str) -> Result<(), Problem> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let valid = (1..=63).contains(&slug.len())
        && plain(slug.as_bytes()[0])
        && slug.bytes().all(|b| plain(b) || b == b'-');
    if valid {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        "must be 1 to 63 lower-case letters, digits and '-', starting with a letter or digit",
    ))
}

/// A slug made of a host's name: lower case, every other character a `-`.
pub fn slug_from_host_name(name: &str) -> String {
    let slug: String = name
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                c
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let slug = slug.trim_start_matches('-');
    if slug.is_empty() {
        "node".to_owned()
    } else {
        slug.to_owned()
    }
}

/// `[A-Za-z0-9][A-Za-z0-9._/=-]{0,62}`.
pub fn check_label(pointer: &str, label: &str) -> Result<(), Problem> {
    let valid = (1..=63).contains(&label.len())
        && label.as_bytes()[0].is_ascii_alphanumeric()
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._/=-".contains(&b));
    if valid {
        return Ok(());
    }
    Err(Problem::field(
        pointer,
        "is no label: 1 to 63 of A-Z a-z 0-9 . _ / = -, starting with a letter or digit",
    ))
}

fn check_text(pointer: &str, text: Option<&str>) -> Result<(), Problem> {
    match text {
        Some(text) if text.len() > MAX_TEXT => Err(Problem::field(
            pointer,
            format!("is longer than {MAX_TEXT} bytes"),
        )),
        _ => Ok(()),
    }
}

/// `http://host[:port][/path]`, without user, query or fragment.
pub fn check_url(pointer: &str, url: &str) -> Result<(), Problem> {
    let wrong = |detail: &str| Err(Problem::field(pointer, detail));
    if url.len() > MAX_URL {
        return wrong("is too long for a URL");
    }
    let Ok(uri) = url.parse::<http::Uri>() else {
        return wrong("is no URL; write it like http://host:12090");
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if uri.scheme_str() != Some("http")
        || uri.host().is_none_or(str::is_empty)
        || authority.contains('@')
    {
        return wrong("must be http://host[:port] without a user name");
    }
    if uri.query().is_some() || url.contains('#') {
        return wrong("must have no query and no fragment");
    }
    Ok(())
}

/// Answer of `GET node_config_url`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Payload version, 1.
    pub version: u64,
    /// Counts what this node was served; an integer as a string.
    pub config_version: String,
    /// When this was made.
    pub issued_at: Time,
    /// For which node.
    pub node_slug: String,
    /// Where things are.
    pub orchestrator: ConfigOrchestrator,
    /// Where sandbox images come from.
    pub sandbox_registry: SandboxRegistry,
    /// Where models come from.
    pub model_cache: ModelCache,
    /// What is allowed.
    pub policy: Policy,
    /// How the orchestrator will show itself at the Worker API.
    pub worker_api: ConfigWorkerApi,
    /// The model server to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_backend: Option<InferenceBackend>,
    /// Upper limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Constraints>,
}

/// Where things are, for a configured node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigOrchestrator {
    /// Root of the control plane.
    pub base_url: String,
    /// URLs.
    pub endpoints: ConfigEndpoints,
}

/// URLs for a configured node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigEndpoints {
    /// Where the orchestrator will look for the node's Worker API.
    pub worker_api_target_url: String,
    /// For capability reports.
    pub node_report_url: String,
}

/// Where sandbox images come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRegistry {
    /// Empty when there is none.
    pub registry_url: String,
}

/// Where models come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelCache {
    /// Empty when there is none.
    pub cache_url: String,
}

/// What is allowed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// For sandboxes.
    pub sandbox: SandboxPolicy,
}

/// What sandboxes are allowed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxPolicy {
    /// The network of a job that names none.
    pub default_network_policy: super::jobs::NetworkPolicy,
    /// `*` patterns on the normal form; absent allows all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_images: Option<Vec<String>>,
}

/// How the orchestrator shows itself at the Worker API.
#[derive(Clone, Serialize, Deserialize)]
pub struct ConfigWorkerApi {
    /// The bearer token that the Worker API accepts.
    pub orchestrator_bearer_token: String,
}

impl std::fmt::Debug for ConfigWorkerApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConfigWorkerApi(…)")
    }
}

/// The model server to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InferenceBackend {
    /// Whether to run one.
    pub enabled: bool,
    /// Its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Such as `rocm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Models to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
}

/// Upper limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Constraints {
    /// Bytes of a body.
    pub max_request_bytes: u64,
    /// Seconds of a job.
    pub max_job_timeout_seconds: u64,
}

/// Body of `POST node_config_url`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigAck {
    /// Payload version, 1.
    pub version: u64,
    /// Who acknowledges.
    pub node_slug: String,
    /// What is acknowledged.
    pub config_version: String,
    /// When.
    pub ack_at: Time,
    /// How it went.
    pub status: AckStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<AckError>,
    /// Hash of what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_config_hash: Option<String>,
}

impl ConfigAck {
    /// Bounds every field.
    pub fn check(&self) -> Result<(), Problem> {
        check_version(self.version)?;
        check_text(
            "/effective_config_hash",
            self.effective_config_hash.as_deref(),
        )?;
        if let Some(error) = &self.error {
            check_text("/error/type", Some(&error.kind))?;
            if error.message.len() > 4096 {
                return Err(Problem::field(
                    "/error/message",
                    "is longer than 4096 bytes",
                ));
            }
        }
        Ok(())
    }
}

/// How applying a configuration went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckStatus {
    /// All of it is in force.
    Applied,
    /// It is not.
    Failed,
}

impl AckStatus {
    /// The name on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Failed => "failed",
        }
    }
}

/// Why a configuration could not be applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AckError {
    /// What kind of trouble.
    #[serde(rename = "type")]
    pub kind: String,
    /// For the operator.
    pub message: String,
    /// Anything more; not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

/// Where a node stands, as users see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// Takes jobs.
    Ready,
    /// Heard, but takes none; the reason says why.
    NotReady,
    /// Finishes what it has.
    Draining,
    /// Not heard for 30 seconds.
    Offline,
}

impl NodeStatus {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// A node as users see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name in commands.
    pub node_slug: String,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it stands.
    pub status: NodeStatus,
    /// Why it isn't ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What tasks may ask for.
    pub labels: Vec<String>,
    /// Where dispatch reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_api_target_url: Option<String>,
    /// The configuration it was last served.
    pub config_version: String,
    /// The one that it last acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_config_version: Option<String>,
    /// How that went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_status: Option<AckStatus>,
    /// When it was last heard.
    pub last_seen_at: Time,
    /// Jobs it has now.
    pub running_jobs: u32,
    /// Jobs it takes at the same time.
    pub max_concurrency: u32,
    /// Its graphics processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Its model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<Inference>,
}

/// Answer of `GET /v1/nodes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeList {
    /// By slug.
    pub nodes: Vec<NodeView>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_that_a_node_may_name() {
        for good in [
            "http://10.0.0.2:12090",
            "http://box.local/x",
            "http://[::1]:1",
        ] {
            assert!(check_url("/u", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "box:1",
            "https://box",
            "ftp://box",
            "http://",
            "http://u@box",
            "http://box/?q",
            "/x",
            "http://a b",
        ] {
            assert!(check_url("/u", bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_host_name_gives_a_slug(name in any::<String>()) {
            prop_assert!(check_slug("/s", &slug_from_host_name(&name)).is_ok());
        }

        #[test]
        fn slugs_and_labels_never_panic(text in any::<String>()) {
            let _ = check_slug("/s", &text);
            let _ = check_label("/l", &text);
            let _ = check_url("/u", &text);
        }
    }
}
