//! `node.yaml`: settings of a node in a file. A flag or a variable overrides it.
//!
//! The file fills the parsed arguments where they are empty, so that flags, variables and the file become
//! settings in one way. An unknown key is an error with its line: a misspelt limit must not silently do nothing.
//! Files of other implementations, and of the previous release, are understood, too ([`aliases`]).

mod aliases;
mod parse;

use crate::{
    api::{
        egress::AllowedEntry,
        nodes::{Connect, GpuShare, InferenceMode, JoinToken},
    },
    cli::{DoctorArgs, LogFormat, LogLevel, NodeArgs, TrustFlags},
    exit::Failure,
    terminal::print_note,
    tls::Pin,
};
use aliases::Alias;
use ipnet::IpNet;
use serde::Deserialize;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// File that a node reads without `--config`, if it exists.
pub(crate) const DEFAULT_PATH: &str = "/etc/cynode/node.yaml";

/// The whole file; each section and key may be missing.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeFile {
    #[serde(deserialize_with = "parse::count")]
    version: Option<u64>,
    #[serde(deserialize_with = "parse::section")]
    orchestrator: OrchestratorSection,
    #[serde(deserialize_with = "parse::section")]
    node: NodeSection,
    #[serde(deserialize_with = "parse::section")]
    worker_api: WorkerApiSection,
    #[serde(deserialize_with = "parse::section")]
    sandbox: SandboxSection,
    #[serde(deserialize_with = "parse::section")]
    egress: EgressSection,
    #[serde(deserialize_with = "parse::section")]
    inference: InferenceSection,
    #[serde(deserialize_with = "parse::section")]
    storage: StorageSection,
    #[serde(deserialize_with = "parse::section")]
    logging: LoggingSection,
    /// Keys of the previous release that the file uses, and their new names.
    #[serde(skip)]
    old_keys: Vec<Alias>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OrchestratorSection {
    url: Option<String>,
    pin: Option<Pin>,
    ca_file: Option<PathBuf>,
    psk_file: Option<PathBuf>,
    join_file: Option<PathBuf>,
    registration_psk_file: Option<PathBuf>,
    connect: Option<Connect>,
    #[serde(deserialize_with = "parse::duration")]
    timeout: Option<Duration>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeSection {
    slug: Option<String>,
    id: Option<String>,
    name: Option<String>,
    labels: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkerApiSection {
    #[serde(deserialize_with = "parse::listen")]
    listen: Option<SocketAddr>,
    #[serde(deserialize_with = "parse::host")]
    listen_host: Option<IpAddr>,
    #[serde(deserialize_with = "parse::any_port")]
    listen_port: Option<u16>,
    advertise_url: Option<String>,
    public_url: Option<String>,
    public_base_url: Option<String>,
    #[serde(deserialize_with = "parse::count")]
    max_request_bytes: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SandboxSection {
    mode: Option<SandboxMode>,
    engine: Option<PathBuf>,
    runtime: Option<String>,
    #[serde(deserialize_with = "parse::positive")]
    max_concurrency: Option<u32>,
    allowed_images: Vec<String>,
    prefetch_images: Vec<String>,
    default_image: Option<String>,
    #[serde(deserialize_with = "parse::duration")]
    default_timeout: Option<Duration>,
    #[serde(deserialize_with = "parse::duration")]
    max_timeout: Option<Duration>,
    #[serde(deserialize_with = "parse::section")]
    timeouts: TimeoutsSection,
    #[serde(deserialize_with = "parse::duration")]
    shutdown_grace: Option<Duration>,
    #[serde(deserialize_with = "parse::count")]
    warm: Option<u32>,
    #[serde(deserialize_with = "parse::size")]
    warm_memory: Option<u64>,
    #[serde(deserialize_with = "parse::size")]
    reserve_memory: Option<u64>,
}

/// Time limits of jobs in files of other implementations.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TimeoutsSection {
    #[serde(deserialize_with = "parse::count")]
    default_seconds: Option<u64>,
    #[serde(deserialize_with = "parse::count")]
    max_seconds: Option<u64>,
}

/// Purpose of a node in files of other implementations.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SandboxMode {
    /// Sandboxes, and a model server where one is configured.
    Allow,
    /// Sandboxes alone.
    SandboxOnly,
    /// No sandboxes.
    Disabled,
}

/// Network of jobs. An empty list allows nothing, and a missing one everything that the orchestrator allows.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EgressSection {
    #[serde(deserialize_with = "parse::hosts")]
    allow: Option<Vec<AllowedEntry>>,
    #[serde(deserialize_with = "parse::networks")]
    allow_private: Option<Vec<IpNet>>,
    #[serde(deserialize_with = "parse::upstream")]
    upstream: Option<String>,
    #[serde(deserialize_with = "parse::size")]
    cache: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct InferenceSection {
    mode: Option<InferenceMode>,
    #[serde(deserialize_with = "parse::port")]
    port: Option<u16>,
    #[serde(deserialize_with = "parse::duration")]
    pull_timeout: Option<Duration>,
    #[serde(deserialize_with = "parse::duration")]
    timeout: Option<Duration>,
    #[serde(deserialize_with = "parse::duration")]
    start_timeout: Option<Duration>,
    #[serde(deserialize_with = "parse::positive")]
    context_length: Option<u32>,
    gpu_share: Option<GpuShare>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StorageSection {
    data_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    jobs_dir: Option<PathBuf>,
    #[serde(deserialize_with = "parse::size")]
    min_free_disk: Option<u64>,
    #[serde(deserialize_with = "parse::size")]
    workspace_limit: Option<u64>,
    #[serde(deserialize_with = "parse::size")]
    job_log_size: Option<u64>,
    #[serde(deserialize_with = "parse::size")]
    content_cache: Option<u64>,
    #[serde(deserialize_with = "parse::size")]
    snapshot_quota: Option<u64>,
    #[serde(deserialize_with = "parse::size")]
    artifact_limit: Option<u64>,
    #[serde(deserialize_with = "parse::duration")]
    result_retention: Option<Duration>,
    #[serde(deserialize_with = "parse::duration")]
    ledger_retain: Option<Duration>,
    #[serde(deserialize_with = "parse::duration_or_off")]
    image_gc: Option<Duration>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LoggingSection {
    level: Option<LogLevel>,
    format: Option<LogFormat>,
}

/// Files of `node.yaml` with the credentials of a node.
#[derive(Default)]
pub(crate) struct CredentialFiles {
    /// File of the pre-shared key.
    pub(crate) psk: Option<PathBuf>,
    /// File of the join token.
    pub(crate) join: Option<PathBuf>,
}

impl NodeFile {
    /// Reads the named file, or else the one at the default path, if it exists.
    pub(crate) fn load(named: Option<&Path>) -> Result<Option<Self>, Failure> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let wrong =
            |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path)
                .map(Some)
                .map_err(|error| wrong(&error)),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
            // The service's own settings, which a user who tries a node by hand may not read.
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::PermissionDenied => {
                print_note(&format!("{} is ignored: {error}", path.display()));
                Ok(None)
            }
            Err(error) => Err(wrong(&format!(
                "{error}; --config must name a file that this user can read"
            ))),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, String> {
        let mut file = parse::file(text)?;
        file.resolve_aliases()?;
        // Relative paths start at the file, wherever the node is started.
        let home = path.parent().unwrap_or(Path::new(""));
        let paths = [
            &mut file.orchestrator.psk_file,
            &mut file.orchestrator.join_file,
            &mut file.orchestrator.ca_file,
            &mut file.storage.data_dir,
            &mut file.storage.jobs_dir,
        ];
        for path in paths {
            *path = path.take().map(|path| home.join(path));
        }
        Ok(file)
    }

    /// Notices about keys of the previous release, to be logged.
    pub(crate) fn old_key_notices(&self) -> impl Iterator<Item = String> {
        let keys = self.old_keys.iter();
        keys.map(|key| format!("node.yaml: {} is deprecated; use {}", key.old, key.new))
    }

    /// Fills the arguments that are empty. Returns the files of credentials, which are not among them: a
    /// variable overrides them, but not the flag.
    pub(crate) fn apply_to(self, args: &mut NodeArgs) -> CredentialFiles {
        set_default(&mut args.orchestrator, self.orchestrator.url);
        let (pin, ca_file) = (self.orchestrator.pin, self.orchestrator.ca_file);
        set_default_trust(&mut args.trust, pin, ca_file);
        set_default(&mut args.orchestrator_timeout, self.orchestrator.timeout);
        set_default(&mut args.connect, self.orchestrator.connect);
        let (identity, file) = (&mut args.identity, self.node);
        set_default(&mut identity.slug, file.slug);
        set_default(&mut identity.name, file.name);
        set_default_list(&mut identity.label, file.labels);
        let (inference, file) = (&mut args.inference, self.inference);
        set_default(&mut inference.inference, file.mode);
        set_default(&mut inference.inference_port, file.port);
        set_default(&mut inference.inference_pull_timeout, file.pull_timeout);
        set_default(&mut inference.inference_start_timeout, file.start_timeout);
        set_default(&mut inference.inference_context_length, file.context_length);
        set_default(&mut inference.gpu_share, file.gpu_share);
        let (sandbox, file) = (&mut args.sandbox, self.worker_api);
        set_default(&mut args.advertise_url, file.advertise_url);
        set_default(&mut sandbox.worker_listen, file.listen);
        set_default(&mut sandbox.max_request_bytes, file.max_request_bytes);
        let file = self.egress;
        set_default(&mut sandbox.egress.egress_allow, file.allow);
        set_default(&mut sandbox.egress.egress_allow_private, file.allow_private);
        let upstream = &mut sandbox.engine.upstream;
        set_default(&mut upstream.egress_upstream, file.upstream);
        set_default(&mut upstream.egress_cache, file.cache);
        let file = self.sandbox;
        set_default_list(&mut sandbox.prefetch_image, file.prefetch_images);
        let engine = &mut sandbox.engine;
        set_default(&mut engine.podman.engine, file.engine);
        set_default(&mut engine.podman.engine_runtime, file.runtime);
        set_default(&mut engine.max_concurrency, file.max_concurrency);
        set_default(&mut engine.default_timeout, file.default_timeout);
        set_default(&mut engine.max_timeout, file.max_timeout);
        set_default(&mut engine.shutdown_grace, file.shutdown_grace);
        set_default(&mut engine.warm, file.warm);
        set_default(&mut engine.warm_memory, file.warm_memory);
        set_default(&mut engine.reserve_memory, file.reserve_memory);
        set_default_list(&mut engine.allowed_image, file.allowed_images);
        let (storage, file) = (&mut engine.storage, self.storage);
        set_default(&mut args.state.data_dir, file.data_dir);
        set_default(&mut storage.jobs_dir, file.jobs_dir);
        set_default(&mut storage.min_free_disk, file.min_free_disk);
        set_default(&mut storage.workspace_limit, file.workspace_limit);
        set_default(&mut storage.job_log_size, file.job_log_size);
        set_default(&mut storage.content_cache, file.content_cache);
        set_default(&mut storage.snapshot_quota, file.snapshot_quota);
        set_default(&mut storage.artifact_limit, file.artifact_limit);
        set_default(&mut storage.result_retention, file.result_retention);
        set_default(&mut storage.image_gc, file.image_gc);
        set_default(&mut args.log.log_level, self.logging.level);
        set_default(&mut args.log.log_format, self.logging.format);
        CredentialFiles {
            psk: self.orchestrator.psk_file,
            join: self.orchestrator.join_file,
        }
    }

    /// Fills the arguments of a doctor that checks for this node. Returns the join token whose URL it took.
    pub(crate) fn apply_to_doctor(self, args: &mut DoctorArgs) -> Option<JoinToken> {
        let section = self.orchestrator;
        set_default_trust(&mut args.trust, section.pin, section.ca_file);
        set_default(&mut args.orchestrator, section.url);
        let token = section.join_file.as_deref().and_then(token_of);
        // The token's pin belongs to the token's URL.
        let token = token.filter(|_| args.orchestrator.is_none());
        if let Some(token) = &token {
            args.orchestrator = Some(token.url.clone());
        }
        set_default(&mut args.worker_listen, self.worker_api.listen);
        set_default(&mut args.podman.engine, self.sandbox.engine);
        set_default(&mut args.podman.engine_runtime, self.sandbox.runtime);
        set_default(&mut args.inference, self.inference.mode);
        set_default(&mut args.inference_port, self.inference.port);
        set_default(&mut args.state.data_dir, self.storage.data_dir);
        set_default(&mut args.storage.jobs_dir, self.storage.jobs_dir);
        set_default(&mut args.storage.min_free_disk, self.storage.min_free_disk);
        token
    }
}

/// Join token of a file; `None` where it can't be read, which the check of the settings reports.
fn token_of(file: &Path) -> Option<JoinToken> {
    let text = Zeroizing::new(std::fs::read_to_string(file).ok()?);
    text.parse().ok()
}

/// Takes the trust of the file where neither a flag nor a variable gives one. One of them replaces both keys: who names a
/// file of authorities does not mean the pin in node.yaml.
fn set_default_trust(flags: &mut TrustFlags, pin: Option<Pin>, ca_file: Option<PathBuf>) {
    if flags.pin.is_none() && flags.ca_file.is_none() {
        *flags = TrustFlags { pin, ca_file };
    }
}

fn set_default<T>(argument: &mut Option<T>, value: Option<T>) {
    *argument = argument.take().or(value);
}

fn set_default_list<T>(argument: &mut Vec<T>, values: Vec<T>) {
    if argument.is_empty() {
        *argument = values;
    }
}

#[cfg(test)]
mod tests;
