//! `node.yaml`: what a node's flags say, in a file. A flag or a variable beats it.
//!
//! The file is laid under the parsed arguments, so that from there on there is one way from words to
//! settings. A key that isn't known is an error which names its line: a limit that was misspelt
//! must not be silently without effect. Files of other implementations are understood, too ([`aliases`]).

mod aliases;

use crate::{
    api::nodes::InferenceMode,
    cli::{
        DoctorArgs, LogFlags, LogFormat, LogLevel, NodeArgs, parse_duration, parse_duration_or_off,
        parse_size,
    },
    exit::Failure,
    terminal::print_note,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_saphyr::{SnippetMode, UserMessageFormatter};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a node looks when it isn't told where.
pub(crate) const DEFAULT_PATH: &str = "/etc/cynode/node.yaml";

/// The whole file; every part of it may be left out.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeFile {
    version: Option<u64>,
    #[serde(deserialize_with = "section")]
    orchestrator: OrchestratorSection,
    #[serde(deserialize_with = "section")]
    node: NodeSection,
    #[serde(deserialize_with = "section")]
    worker_api: WorkerApiSection,
    #[serde(deserialize_with = "section")]
    sandbox: SandboxSection,
    #[serde(deserialize_with = "section")]
    inference: InferenceSection,
    #[serde(deserialize_with = "section")]
    storage: StorageSection,
    #[serde(deserialize_with = "section")]
    logging: LoggingSection,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OrchestratorSection {
    url: Option<String>,
    psk_file: Option<PathBuf>,
    registration_psk_file: Option<PathBuf>,
    timeout: Option<DurationText>,
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
    listen: Option<SocketAddr>,
    listen_host: Option<IpAddr>,
    listen_port: Option<u16>,
    public_url: Option<String>,
    public_base_url: Option<String>,
    max_request_bytes: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SandboxSection {
    mode: Option<SandboxMode>,
    engine: Option<PathBuf>,
    runtime: Option<String>,
    max_concurrency: Option<NonZeroU32>,
    allowed_images: Vec<String>,
    default_image: Option<String>,
    default_timeout: Option<DurationText>,
    max_timeout: Option<DurationText>,
    #[serde(deserialize_with = "section")]
    timeouts: TimeoutsSection,
    shutdown_grace: Option<DurationText>,
}

/// The time limits of jobs, as other implementations write them.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TimeoutsSection {
    default_seconds: Option<u64>,
    max_seconds: Option<u64>,
}

/// What a node is for, as other implementations write it.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SandboxMode {
    /// Sandboxes, and a model server where one is wanted.
    Allow,
    /// Sandboxes alone.
    SandboxOnly,
    /// No sandboxes.
    Disabled,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct InferenceSection {
    mode: Option<InferenceMode>,
    port: Option<NonZeroU16>,
    timeout: Option<DurationText>,
    start_timeout: Option<DurationText>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StorageSection {
    data_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    jobs_dir: Option<PathBuf>,
    min_free_disk: Option<SizeText>,
    job_log_size: Option<SizeText>,
    ledger_retain: Option<DurationText>,
    image_gc: Option<DurationOrOff>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LoggingSection {
    level: Option<LogLevel>,
    format: Option<LogFormat>,
}

/// A part of which every line is commented out is null, and says nothing.
fn section<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A number of bytes, written as on the command line.
struct SizeText(u64);

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_size(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A span of time, written as on the command line.
struct DurationText(Duration);

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Self).map_err(D::Error::custom)
    }
}

/// The same, or `off`.
struct DurationOrOff(Duration);

impl<'de> Deserialize<'de> for DurationOrOff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration_or_off(&text)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

impl NodeFile {
    /// Reads the named file, or the one at the usual place, if there is one.
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
                print_note(&format!("{} is left out: {error}", path.display()));
                Ok(None)
            }
            Err(error) => Err(wrong(&format!(
                "{error}; see that --config names a file which this user may read"
            ))),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, String> {
        // A file of nothing but comments says nothing.
        let file: Option<Self> =
            serde_saphyr::from_str(text).map_err(|error| describe_error(&error, text))?;
        let mut file = file.unwrap_or_default();
        file.resolve_aliases()?;
        // Paths are meant as seen from the file, wherever the node is started.
        let home = path.parent().unwrap_or(Path::new(""));
        let paths = [
            &mut file.orchestrator.psk_file,
            &mut file.storage.data_dir,
            &mut file.storage.jobs_dir,
        ];
        for path in paths {
            *path = path.take().map(|path| home.join(path));
        }
        Ok(file)
    }

    /// Lays the file under the arguments; its pre-shared key comes back, as it has no flag's rank.
    pub(crate) fn apply_to(self, args: &mut NodeArgs, common: &mut LogFlags) -> Option<PathBuf> {
        let time = |span: Option<DurationText>| span.map(|span| span.0);
        let bytes = |size: Option<SizeText>| size.map(|size| size.0);
        let (sandbox, engine) = (&mut args.sandbox, self.sandbox);
        set_default(&mut sandbox.worker_listen, self.worker_api.listen);
        set_default(
            &mut sandbox.max_request_bytes,
            self.worker_api.max_request_bytes,
        );
        set_default(&mut sandbox.default_image, engine.default_image);
        let flags = &mut sandbox.engine;
        set_default(&mut flags.podman.engine, engine.engine);
        set_default(&mut flags.podman.engine_runtime, engine.runtime);
        set_default(
            &mut flags.max_concurrency,
            engine.max_concurrency.map(NonZeroU32::get),
        );
        set_default(&mut flags.default_timeout, time(engine.default_timeout));
        set_default(&mut flags.max_timeout, time(engine.max_timeout));
        set_default(&mut flags.shutdown_grace, time(engine.shutdown_grace));
        set_default_list(&mut flags.allowed_image, engine.allowed_images);
        set_default(&mut args.orchestrator, self.orchestrator.url);
        set_default(
            &mut args.orchestrator_timeout,
            time(self.orchestrator.timeout),
        );
        set_default(&mut args.advertise_url, self.worker_api.public_url);
        set_default(&mut args.identity.slug, self.node.slug);
        set_default(&mut args.identity.name, self.node.name);
        set_default_list(&mut args.identity.label, self.node.labels);
        set_default(&mut args.inference.inference, self.inference.mode);
        set_default(
            &mut args.inference.inference_port,
            self.inference.port.map(NonZeroU16::get),
        );
        set_default(
            &mut args.inference.inference_timeout,
            time(self.inference.timeout),
        );
        set_default(
            &mut args.inference.inference_start_timeout,
            time(self.inference.start_timeout),
        );
        set_default(&mut args.state.data_dir, self.storage.data_dir);
        set_default(&mut flags.storage.jobs_dir, self.storage.jobs_dir);
        set_default(
            &mut flags.storage.min_free_disk,
            bytes(self.storage.min_free_disk),
        );
        set_default(
            &mut flags.storage.job_log_size,
            bytes(self.storage.job_log_size),
        );
        set_default(
            &mut flags.storage.ledger_retain,
            time(self.storage.ledger_retain),
        );
        let image_gc = self.storage.image_gc.map(|age| age.0);
        set_default(&mut flags.storage.image_gc, image_gc);
        set_default(&mut common.log_level, self.logging.level);
        set_default(&mut common.log_format, self.logging.format);
        self.orchestrator.psk_file
    }

    /// The same for a doctor that looks at what the node would do.
    pub(crate) fn apply_to_doctor(self, args: &mut DoctorArgs) {
        set_default(&mut args.orchestrator, self.orchestrator.url);
        set_default(&mut args.worker_listen, self.worker_api.listen);
        set_default(&mut args.podman.engine, self.sandbox.engine);
        set_default(&mut args.podman.engine_runtime, self.sandbox.runtime);
        set_default(&mut args.inference, self.inference.mode);
        set_default(
            &mut args.inference_port,
            self.inference.port.map(NonZeroU16::get),
        );
        set_default(&mut args.state.data_dir, self.storage.data_dir);
        set_default(&mut args.storage.jobs_dir, self.storage.jobs_dir);
        set_default(
            &mut args.storage.min_free_disk,
            self.storage.min_free_disk.map(|size| size.0),
        );
    }
}

/// What is wrong, and at which key. The line's value is left out: a secret may stand where it has no
/// place.
fn describe_error(error: &serde_saphyr::Error, text: &str) -> String {
    let plain = serde_saphyr::render_options! {
        formatter: &UserMessageFormatter,
        snippets: SnippetMode::Off,
    };
    let message = error.render_with_options(plain);
    let line = error
        .location()
        .and_then(|location| text.lines().nth((location.line() as usize).checked_sub(1)?));
    match line.and_then(|line| line.split_once(':')) {
        Some((key, _)) => format!("{message} ({}: …)", key.trim()),
        None => message,
    }
}

fn set_default<T>(said: &mut Option<T>, otherwise: Option<T>) {
    *said = said.take().or(otherwise);
}

fn set_default_list<T>(said: &mut Vec<T>, otherwise: Vec<T>) {
    if said.is_empty() {
        *said = otherwise;
    }
}

#[cfg(test)]
mod tests;
