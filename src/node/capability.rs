//! Capability report: what this machine is and can do.

use super::{NodeError, Settings, address::AdvertisedUrl};
use crate::{
    api::{
        PAYLOAD_VERSION,
        nodes::{
            CapabilityReport, Compute, ContainerRuntime, Gpu, GpuDevice, INFERENCE_PROXY,
            Inference, InferenceMode, MAX_TEXT_BYTES, MAX_WARNING_BYTES, NetworkCapability,
            NodeInfo, Platform, Reach, SandboxCapability, WorkerApi, features,
        },
        time::Time,
    },
    data_dir::DataDir,
    disk_space::free_bytes,
    engine::Engine,
    worker::{PreparedWorker, Worker},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

/// Features of the sandboxes on every host.
const BASE_FEATURES: [&str; 14] = [
    "network-none",
    "workspace",
    "static-init",
    "grace",
    features::STDIN,
    features::LOG_ARCHIVE,
    features::PULL_POLICY,
    features::IMAGE_LOAD,
    features::PROMPTS,
    features::INFERENCE,
    features::SESSIONS,
    features::SECRETS,
    features::EGRESS,
    features::EGRESS_TERMINATE,
];

/// Source of capability reports. Fixed facts are read once, the others for each report.
pub(super) struct Machine {
    base_report: CapabilityReport,
    engine: Engine,
    advertised: AdvertisedUrl,
    /// Whether the Worker API listens, or will.
    listens: AtomicBool,
    /// Whether the node opens a tunnel; before the first registration, whether it would.
    has_tunnel: AtomicBool,
    data_dir: PathBuf,
    inference: watch::Receiver<Inference>,
    closing: watch::Receiver<bool>,
    worker: OnceLock<Worker>,
    /// Time of the first report after `closing`.
    stopping_since: OnceLock<Time>,
}

impl Machine {
    pub(super) fn inspect(
        data_dir: &DataDir,
        settings: &Settings,
        prepared: &PreparedWorker,
        (advertised, listens): (AdvertisedUrl, bool),
        devices: Vec<GpuDevice>,
        (inference, closing): (watch::Receiver<Inference>, watch::Receiver<bool>),
    ) -> Self {
        let engine = prepared.engine();
        let base_report = base_report(settings, engine, prepared.features(), devices);
        Self {
            base_report,
            engine: engine.clone(),
            advertised,
            listens: AtomicBool::new(listens),
            has_tunnel: AtomicBool::new(settings.dials()),
            data_dir: data_dir.path().to_owned(),
            inference,
            closing,
            worker: OnceLock::new(),
            stopping_since: OnceLock::new(),
        }
    }

    /// Includes the state of `worker` in all reports from now on.
    pub(super) fn set_worker(&self, worker: &Worker) {
        // A node has one worker, set once.
        let _ = self.worker.set(worker.clone());
    }

    /// Reports the address of the Worker API from now on, or none.
    pub(super) fn set_listening(&self, listens: bool) {
        self.listens.store(listens, Ordering::Relaxed);
    }

    /// Reports whether the node opens a tunnel from now on.
    pub(super) fn set_tunnel(&self, has_tunnel: bool) {
        self.has_tunnel.store(has_tunnel, Ordering::Relaxed);
    }

    /// Id of this process.
    pub(super) fn instance(&self) -> Option<&str> {
        self.base_report.node.instance_id.as_deref()
    }

    /// The current report.
    pub(super) async fn report(&self) -> Result<CapabilityReport, NodeError> {
        let mut report = self.base_report.clone();
        let listens = self.listens.load(Ordering::Relaxed);
        report.worker_api = Some(WorkerApi {
            base_url: if listens {
                self.advertised.url().await?
            } else {
                String::new()
            },
            tunnel: self.has_tunnel.load(Ordering::Relaxed),
            reach: Reach::default(),
        });
        report.reported_at = Some(Time::now());
        report.compute.storage_free_mb = free_mb(&self.data_dir);
        report.inference = Some(self.inference.borrow().clone());
        let is_closing = *self.closing.borrow();
        report.node.stopping_since =
            is_closing.then(|| *self.stopping_since.get_or_init(Time::now));
        let gpus = self.worker.get().map(Worker::gpus).unwrap_or_default();
        if let Some(devices) = report.gpu.as_mut().and_then(|gpu| gpu.devices.as_mut()) {
            for (at, id, is_busy) in gpus {
                if let Some(device) = devices.get_mut(at) {
                    (device.id, device.busy) = (Some(id), is_busy);
                }
            }
        }
        if let Some(sandbox) = &mut report.sandbox {
            // A node that stops, whose podman hangs, or whose disk is full, takes no jobs.
            let worker = self.worker.get();
            let count = |of: fn(&Worker) -> usize| {
                let jobs = worker.map_or(0, of);
                u32::try_from(jobs).unwrap_or(u32::MAX)
            };
            sandbox.other_jobs = count(Worker::foreign_jobs);
            sandbox.pulling_jobs = count(Worker::pulling_jobs);
            sandbox.warm = worker.and_then(Worker::warm_counts);
            if let Some((default, most)) = worker.map(Worker::time_limits) {
                sandbox.default_timeout_seconds = Some(default);
                sandbox.max_timeout_seconds = Some(most);
            }
            sandbox.local_images = match worker {
                Some(worker) => worker.local_images().await,
                None => None,
            };
            let refusal = match worker {
                Some(worker) => worker.unavailable_reason().await,
                None => self.engine.health_error(),
            };
            sandbox.supported = !is_closing && refusal.is_none();
            sandbox.reason = refusal.map(|text| truncate_text(text, MAX_TEXT_BYTES));
            let warnings = worker.map(|worker| worker.warnings());
            let warnings = warnings.into_iter().flatten();
            sandbox.warnings = warnings
                .map(|text| truncate_text(text, MAX_WARNING_BYTES))
                .collect();
        }
        Ok(report)
    }

    /// GPUs of this machine.
    pub(super) fn gpus(&self) -> &[GpuDevice] {
        let gpu = self.base_report.gpu.as_ref();
        gpu.and_then(|gpu| gpu.devices.as_deref())
            .unwrap_or_default()
    }
}

/// Facts about this machine that do not change while the node runs.
fn base_report(
    settings: &Settings,
    engine: &Engine,
    features: Vec<String>,
    devices: Vec<GpuDevice>,
) -> CapabilityReport {
    let info = engine.info();
    let uname = rustix::system::uname();
    CapabilityReport {
        version: PAYLOAD_VERSION,
        reported_at: Some(Time::now()),
        node: NodeInfo {
            node_slug: settings.slug.clone(),
            instance_id: Some(uuid::Uuid::new_v4().to_string()),
            name: settings.name.clone(),
            labels: Some(settings.labels.clone()),
            stopping_since: None,
        },
        platform: Platform {
            os: std::env::consts::OS.to_owned(),
            distro: distro(),
            arch: arch(std::env::consts::ARCH).to_owned(),
            kernel_version: uname.release().to_str().ok().map(str::to_owned),
        },
        container_runtime: Some(ContainerRuntime {
            runtime: "podman".to_owned(),
            version: Some(info.version.clone()),
            rootless_supported: Some(info.rootless || has_subordinate_ids()),
            rootless_enabled: Some(info.rootless),
        }),
        compute: Compute {
            cpu_model: proc_field("/proc/cpuinfo", "model name"),
            cpu_cores: cpu_cores(),
            ram_mb: memory_mb(),
            storage_free_mb: None,
        },
        gpu: Some(Gpu {
            present: !devices.is_empty(),
            devices: Some(devices),
        }),
        sandbox: Some(SandboxCapability {
            supported: true,
            features: Some(
                BASE_FEATURES
                    .into_iter()
                    .map(str::to_owned)
                    .chain(features)
                    .collect(),
            ),
            max_concurrency: u32::try_from(settings.sandbox.max_concurrency).ok(),
            other_jobs: 0,
            // Known once there is a worker.
            max_timeout_seconds: None,
            default_timeout_seconds: None,
            allowed_images: settings.sandbox.allowed_images.clone(),
            local_images: None,
            pulling_jobs: 0,
            warm: None,
            reason: None,
            warnings: Vec::new(),
        }),
        network: Some(NetworkCapability {
            orchestrator_reachable: Some(true),
            outbound_policy: Some("none".to_owned()),
        }),
        inference: None,
        worker_api: None,
        tls: None,
    }
}

/// A text within the limit of a report.
fn truncate_text(mut text: String, max_bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(max_bytes));
    text
}

/// State of the model server before one runs.
pub(super) fn initial_inference(mode: InferenceMode, has_gpu: bool) -> Inference {
    Inference {
        supported: match mode {
            InferenceMode::Off => false,
            InferenceMode::Auto => has_gpu,
            InferenceMode::On => true,
        },
        mode: Some(mode.as_str().to_owned()),
        running: Some(false),
        features: Some(vec![INFERENCE_PROXY.to_owned()]),
        ..Inference::default()
    }
}

/// Name of an architecture in image registries, which is Go's.
fn arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether this host has subordinate ids for rootless containers.
fn has_subordinate_ids() -> bool {
    fs::read_to_string("/etc/subuid").is_ok_and(|text| !text.trim().is_empty())
}

/// Logical CPUs that this process may use.
fn cpu_cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

fn free_mb(path: &Path) -> Option<u64> {
    free_bytes(path).ok().map(|bytes| bytes >> 20)
}

fn memory_mb() -> u64 {
    let total = proc_field("/proc/meminfo", "MemTotal");
    let kib = total.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// `PRETTY_NAME` of os-release(5).
fn distro() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_owned())
}

/// The value of the first `name : value` line of a file under /proc.
fn proc_field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}
