//! Settings of the roles, checked, from flags, variables and files.

use super::{
    DEFAULT_ORCHESTRATOR_TIMEOUT,
    credentials::{NodeCredentials, orchestrator_psks},
    egress,
    node_file::{CredentialFiles, DEFAULT_PATH},
    tls::tls_settings,
};
use crate::{
    api::{
        image::ImageRef,
        jobs::{DEFAULT_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS},
        nodes::{
            Connect, InferenceMode, check_model, check_plain_url, check_slug, check_url,
            slug_from_host_name,
        },
        problem::Problem,
    },
    cli::{
        DataDirFlags, EngineFlags, InferenceFlags, NodeArgs, OrchestratorFlags, PskFlags,
        SandboxFlags, StorageFlags, Switch,
    },
    data_dir::DataDir,
    exit::Failure,
    http::MAX_BODY_BYTES,
    node, orchestrator,
    secrets::read_role_secret,
    store::{QueueLimits, Retention, SandboxLimits},
    tls::Trust,
    worker,
};
use std::{collections::HashMap, net::Ipv4Addr, path::PathBuf, time::Duration};

/// Smallest allowed limit of a request body at the Worker API; no job fits into less.
const MIN_REQUEST_BYTES: usize = 1024;
/// Smallest allowed limit of what a job has on disk, in bytes.
const MIN_WORKSPACE_BYTES: u64 = 1 << 20;
/// Allowed sizes of the output that is kept of a job, in bytes.
const JOB_LOG_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;

pub(super) fn open_data_dir(state: &DataDirFlags) -> Result<DataDir, Failure> {
    Ok(DataDir::open(&data_dir_path(state)?)?)
}

/// Data directory: the given one, or the default.
pub(crate) fn data_dir_path(state: &DataDirFlags) -> Result<PathBuf, Failure> {
    match &state.data_dir {
        Some(path) => Ok(path.clone()),
        None => default_data_dir(),
    }
}

/// `/var/lib/cynode` for root, else the XDG state directory.
fn default_data_dir() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/cynode"));
    }
    let from = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    from("XDG_STATE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/state")))
        .map(|path| path.join("cynode"))
        .ok_or_else(|| {
            Failure::usage(
                "neither XDG_STATE_HOME nor HOME is set; give a directory with --data-dir",
            )
        })
}

fn parse_image(flag: &str, text: &str) -> Result<ImageRef, Failure> {
    text.parse()
        .map_err(|error| Failure::usage(format!("{flag} {text:?}: {error}")))
}

/// Models of all nodes, `NAME`, and of one node, `SLUG=NAME`.
fn parse_models(texts: &[String]) -> Result<Vec<orchestrator::WantedModel>, Failure> {
    let invalid = |text: &str, problem: &Problem| {
        Failure::usage(format!("--inference-model {text:?} {}", problem.detail))
    };
    texts
        .iter()
        .map(|text| {
            let (slug, name) = match text.split_once('=') {
                Some((slug, name)) => (Some(slug), name),
                None => (None, text.as_str()),
            };
            slug.map_or(Ok(()), |slug| check_slug("", slug))
                .and_then(|()| check_model("", name))
                .map_err(|problem| invalid(text, &problem))?;
            Ok(orchestrator::WantedModel {
                slug: slug.map(str::to_owned),
                name: name.to_owned(),
            })
        })
        .collect()
}

fn validate_model(flag: &str, name: String) -> Result<String, Failure> {
    check_model("", &name)
        .map_err(|problem| Failure::usage(format!("{flag} {name:?} {}", problem.detail)))?;
    Ok(name)
}

pub(super) fn validate_url(flag: &str, url: String) -> Result<String, Failure> {
    check_url("", &url).map_err(|problem| Failure::usage(format!("{flag} {}", problem.detail)))?;
    Ok(url)
}

fn validate_plain_url(flag: &str, url: &str) -> Result<String, Failure> {
    check_plain_url("", url)
        .map_err(|problem| Failure::usage(format!("{flag} {}", problem.detail)))?;
    Ok(url.to_owned())
}

pub(super) fn parse_worker_urls(pairs: &[String]) -> Result<HashMap<String, String>, Failure> {
    pairs
        .iter()
        .map(|pair| {
            let (slug, url) = pair.split_once('=').ok_or_else(|| {
                Failure::usage(format!("--worker-url {pair:?}: expected SLUG=URL"))
            })?;
            Ok((slug.to_owned(), validate_plain_url("--worker-url", url)?))
        })
        .collect()
}

/// Settings that `serve-orchestrator` and `dev` share; each overrides the rest.
pub(super) fn orchestrator_settings(
    flags: OrchestratorFlags,
    psk_flags: &PskFlags,
) -> Result<orchestrator::Settings, Failure> {
    Ok(orchestrator::Settings {
        gateway_listen: flags.gateway_listen,
        control_listen: (Ipv4Addr::LOCALHOST, 0).into(),
        public_url: None,
        tls: tls_settings(flags.tls)?,
        psk: orchestrator_psks(psk_flags)?,
        admin_password: read_role_secret(
            "--admin-password-file",
            flags.admin_password_file.as_deref(),
            "CYNODE_ADMIN_PASSWORD",
        )?,
        worker_urls: HashMap::new(),
        worker_url_allow: Vec::new(),
        default_image: parse_image("--default-image", &flags.default_image)?,
        inference_image: flags
            .inference_image
            .map(|text| parse_image("--inference-image", &text))
            .transpose()?,
        inference_models: parse_models(&flags.inference_model)?,
        models: orchestrator::ModelSettings::default(),
        default_model: flags
            .default_model
            .map(|name| validate_model("--default-model", name))
            .transpose()?,
        has_node: false,
        queue: QueueLimits {
            all: flags.limits.max_queued,
            per_user: flags.limits.max_queued_per_user,
            bytes: flags.limits.max_queued_bytes,
            bytes_per_user: flags.limits.max_queued_bytes_per_user,
        },
        sandboxes: SandboxLimits {
            per_user: flags.limits.max_sandboxes_per_user,
            all: flags.limits.max_sandboxes,
        },
        egress: egress::policy(flags.egress),
        reserve_disk: flags.retention.reserve_disk,
        artifact_quota: Some(flags.retention.artifact_quota).filter(|quota| *quota > 0),
        lease: orchestrator::LeaseTerms {
            length: flags.limits.lease,
            grows: flags.limits.lease_growth == Switch::On,
        },
        init: flags.init,
        new_keys: flags.new_keys,
        drill: false,
        retention: Retention {
            age: Some(flags.retention.retain).filter(|age| !age.is_zero()),
            max_tasks: Some(flags.retention.retain_max).filter(|most| *most > 0),
        },
        logs: orchestrator::LogRetention {
            age: flags.retention.log_retention.filter(|age| !age.is_zero()),
            quota: flags.retention.log_quota,
        },
        max_jobs_per_node: flags.limits.max_jobs_per_node,
        max_nodes: flags.limits.max_nodes,
        user_rate: flags.limits.user_rate,
        trusted_proxies: flags.limits.trusted_proxy,
        require_inference: orchestrator::RequireInference::Auto,
    })
}

/// Settings of a node. `files` are node.yaml's, which flags and variables override.
pub(super) fn node_settings(
    args: NodeArgs,
    files: &CredentialFiles,
) -> Result<node::Settings, Failure> {
    let missing = |setting: &str| {
        Failure::usage(format!(
            "the node needs {setting}, or set it in {DEFAULT_PATH} or another --config FILE"
        ))
    };
    let flags = (&args.psk, &args.join);
    let credentials = NodeCredentials::read(flags, files, args.orchestrator, missing)?;
    let pin = args.trust.pin;
    if args.trust.ca_file.is_some() {
        // Before the role starts: an unreadable file is a wrong setting.
        let trust = Trust::new(pin.clone(), args.trust.ca_file.clone());
        trust
            .config()
            .map_err(|error| Failure::usage(error.to_string()))?;
    }
    Ok(node::Settings {
        orchestrator: credentials.orchestrator,
        orchestrator_timeout: args
            .orchestrator_timeout
            .unwrap_or(DEFAULT_ORCHESTRATOR_TIMEOUT),
        pin,
        token_pin: credentials.pin,
        ca_file: args.trust.ca_file,
        psk: credentials.psk,
        is_join_token: credentials.is_join_token,
        slug: args.identity.slug.unwrap_or_else(default_slug),
        name: args.identity.name,
        labels: args.identity.label,
        connect: args.connect.unwrap_or(Connect::Auto),
        worker_listen: args.sandbox.worker_listen,
        advertise_url: args.advertise_url,
        inference: inference_settings(&args.inference, InferenceMode::Auto),
        sandbox: worker_settings(&args.sandbox)?,
        ephemeral: false,
    })
}

/// Sandbox settings that all roles share.
pub(super) fn sandbox_settings(flags: &EngineFlags) -> Result<worker::Settings, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = Duration::from_secs(MAX_TIMEOUT_SECONDS);
    if let Some(asked) = flags.max_timeout
        && !(Duration::from_secs(1)..=most).contains(&asked)
    {
        return Err(Failure::usage(format!(
            "--max-timeout must be 1s to {}d",
            most.as_secs() / (24 * 3600)
        )));
    }
    let default = Duration::from_secs(DEFAULT_TIMEOUT_SECONDS);
    if let Some(asked) = flags.default_timeout
        && !(Duration::from_secs(1)..=default).contains(&asked)
    {
        return Err(Failure::usage(
            "--default-timeout must be 1s to 1h; a task that needs longer sets its own --timeout",
        ));
    }
    Ok(worker::Settings {
        max_concurrency: flags.max_concurrency.map_or(cores, |n| n as usize),
        allowed_images: flags.allowed_image.clone(),
        prefetch_images: Vec::new(),
        engine: flags.podman.program(),
        engine_runtime: flags.podman.engine_runtime.clone(),
        default_timeout: flags.default_timeout,
        max_timeout: flags.max_timeout,
        max_request_bytes: None,
        warm: flags.warm.map(|n| n as usize),
        warm_memory: flags.warm_memory.unwrap_or(worker::DEFAULT_WARM_MEMORY),
        reserve_memory: flags
            .reserve_memory
            .unwrap_or(worker::DEFAULT_RESERVE_MEMORY),
        egress: egress::machine_limits(&flags.upstream)?,
        storage: storage_settings(&flags.storage)?,
    })
}

fn storage_settings(flags: &StorageFlags) -> Result<worker::StorageSettings, Failure> {
    let default = worker::StorageSettings::default();
    let log_bytes = flags.job_log_size.unwrap_or(default.log_bytes);
    if !JOB_LOG_BYTES.contains(&log_bytes) {
        return Err(Failure::usage(
            "--job-log-size must be from 1MiB to 1TiB; each running job may use that much of the disk",
        ));
    }
    if flags
        .workspace_limit
        .is_some_and(|limit| limit < MIN_WORKSPACE_BYTES)
    {
        return Err(Failure::usage(
            "--workspace-limit must be at least 1MiB; leave it out for no limit",
        ));
    }
    let jobs_dir = flags.jobs_dir.clone();
    if let Some(path) = &jobs_dir
        && path.to_str().is_none_or(|text| text.contains(':'))
    {
        return Err(Failure::usage(
            "--jobs-dir must be UTF-8 without ':'; podman cannot mount other paths",
        ));
    }
    Ok(worker::StorageSettings {
        jobs_dir,
        min_free: flags.min_free_disk.unwrap_or(default.min_free),
        workspace_limit: flags.workspace_limit,
        log_bytes,
        content_cache: flags.content_cache.unwrap_or(default.content_cache),
        snapshot_quota: flags.snapshot_quota.unwrap_or(default.snapshot_quota),
        artifact_limit: flags.artifact_limit.unwrap_or(default.artifact_limit),
        retain: flags.result_retention.unwrap_or(default.retain),
        image_gc: flags
            .image_gc
            .or(default.image_gc)
            .filter(|age| !age.is_zero()),
    })
}

/// Sandbox settings of a node or a worker, which have a machine of their own.
pub(super) fn worker_settings(flags: &SandboxFlags) -> Result<worker::Settings, Failure> {
    if let Some(bytes) = flags.max_request_bytes
        && !(MIN_REQUEST_BYTES..=MAX_BODY_BYTES).contains(&bytes)
    {
        return Err(Failure::usage(format!(
            "--max-request-bytes must be {MIN_REQUEST_BYTES} to {MAX_BODY_BYTES}"
        )));
    }
    Ok(worker::Settings {
        prefetch_images: flags
            .prefetch_image
            .iter()
            .map(|text| parse_image("--prefetch-image", text))
            .collect::<Result<_, _>>()?,
        max_request_bytes: flags.max_request_bytes,
        egress: egress::node_limits(&flags.egress, &flags.engine.upstream)?,
        ..sandbox_settings(&flags.engine)?
    })
}

pub(super) fn shutdown_grace(flags: &EngineFlags) -> Duration {
    flags.shutdown_grace.unwrap_or(Duration::from_secs(10))
}

pub(super) fn inference_settings(
    flags: &InferenceFlags,
    default: InferenceMode,
) -> node::InferenceSettings {
    node::InferenceSettings {
        mode: flags.inference.unwrap_or(default),
        port: flags.inference_port,
        pull_timeout: flags
            .inference_pull_timeout
            .unwrap_or(Duration::from_mins(30)),
        start_timeout: flags
            .inference_start_timeout
            .unwrap_or(Duration::from_mins(2)),
        gpu_share: flags.gpu_share.unwrap_or_default(),
        context_length: flags.inference_context_length,
    }
}

pub(super) fn default_slug() -> String {
    slug_from_host_name(&rustix::system::uname().nodename().to_string_lossy())
}
