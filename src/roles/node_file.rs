//! `node.yaml`: what a node's flags say, in a file. A flag or a variable beats it.
//!
//! The file is laid under the parsed arguments, so that from there on there is one way from words to
//! settings. A key that isn't known is an error which names its line: a limit that was misspelt
//! must not be silently without effect. Files of other implementations are understood, too ([`aliases`]).

mod aliases;

use crate::{
    cli::{Common, DoctorArgs, LogFormat, LogLevel, NodeArgs, duration, duration_or_off, size},
    client::print::note,
    exit::Failure,
    node::InferenceMode,
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
    #[serde(deserialize_with = "part")]
    orchestrator: OrchestratorPart,
    #[serde(deserialize_with = "part")]
    node: NodePart,
    #[serde(deserialize_with = "part")]
    worker_api: WorkerApiPart,
    #[serde(deserialize_with = "part")]
    sandbox: SandboxPart,
    #[serde(deserialize_with = "part")]
    inference: InferencePart,
    #[serde(deserialize_with = "part")]
    storage: StoragePart,
    #[serde(deserialize_with = "part")]
    logging: LoggingPart,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OrchestratorPart {
    url: Option<String>,
    psk_file: Option<PathBuf>,
    registration_psk_file: Option<PathBuf>,
    timeout: Option<Span>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodePart {
    slug: Option<String>,
    id: Option<String>,
    name: Option<String>,
    labels: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkerApiPart {
    listen: Option<SocketAddr>,
    listen_host: Option<IpAddr>,
    listen_port: Option<u16>,
    public_url: Option<String>,
    public_base_url: Option<String>,
    max_request_bytes: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SandboxPart {
    mode: Option<SandboxMode>,
    engine: Option<PathBuf>,
    runtime: Option<String>,
    max_concurrency: Option<NonZeroU32>,
    allowed_images: Vec<String>,
    default_image: Option<String>,
    default_timeout: Option<Span>,
    max_timeout: Option<Span>,
    #[serde(deserialize_with = "part")]
    timeouts: TimeoutsPart,
    shutdown_grace: Option<Span>,
}

/// The time limits of jobs, as other implementations write them.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TimeoutsPart {
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
struct InferencePart {
    mode: Option<InferenceMode>,
    port: Option<NonZeroU16>,
    timeout: Option<Span>,
    start_timeout: Option<Span>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StoragePart {
    data_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    jobs_dir: Option<PathBuf>,
    min_free_disk: Option<Size>,
    job_log_size: Option<Size>,
    ledger_retain: Option<Span>,
    image_gc: Option<SpanOrOff>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LoggingPart {
    level: Option<LogLevel>,
    format: Option<LogFormat>,
}

/// A part of which every line is commented out is null, and says nothing.
fn part<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A number of bytes, written as on the command line.
struct Size(u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        size(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A span of time, written as on the command line.
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration(&text).map(Self).map_err(D::Error::custom)
    }
}

/// The same, or `off`.
struct SpanOrOff(Duration);

impl<'de> Deserialize<'de> for SpanOrOff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration_or_off(&text).map(Self).map_err(D::Error::custom)
    }
}

impl NodeFile {
    /// Reads the named file, or the one at the usual place, if there is one.
    pub(crate) fn find(named: Option<&Path>) -> Result<Option<Self>, Failure> {
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
                note(&format!("{} is left out: {error}", path.display()));
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
            serde_saphyr::from_str(text).map_err(|error| told(&error, text))?;
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
    pub(crate) fn fill(self, args: &mut NodeArgs, common: &mut Common) -> Option<PathBuf> {
        let time = |span: Option<Span>| span.map(|span| span.0);
        let bytes = |size: Option<Size>| size.map(|size| size.0);
        let (sandbox, engine) = (&mut args.sandbox, self.sandbox);
        under(&mut sandbox.worker_listen, self.worker_api.listen);
        under(
            &mut sandbox.max_request_bytes,
            self.worker_api.max_request_bytes,
        );
        under(&mut sandbox.default_image, engine.default_image);
        let flags = &mut sandbox.engine;
        under(&mut flags.podman.engine, engine.engine);
        under(&mut flags.podman.engine_runtime, engine.runtime);
        under(
            &mut flags.max_concurrency,
            engine.max_concurrency.map(NonZeroU32::get),
        );
        under(&mut flags.default_timeout, time(engine.default_timeout));
        under(&mut flags.max_timeout, time(engine.max_timeout));
        under(&mut flags.shutdown_grace, time(engine.shutdown_grace));
        under_list(&mut flags.allowed_image, engine.allowed_images);
        under(&mut args.orchestrator, self.orchestrator.url);
        under(
            &mut args.orchestrator_timeout,
            time(self.orchestrator.timeout),
        );
        under(&mut args.advertise_url, self.worker_api.public_url);
        under(&mut args.identity.slug, self.node.slug);
        under(&mut args.identity.name, self.node.name);
        under_list(&mut args.identity.label, self.node.labels);
        under(&mut args.inference.inference, self.inference.mode);
        under(
            &mut args.inference.inference_port,
            self.inference.port.map(NonZeroU16::get),
        );
        under(
            &mut args.inference.inference_timeout,
            time(self.inference.timeout),
        );
        under(
            &mut args.inference.inference_start_timeout,
            time(self.inference.start_timeout),
        );
        under(&mut args.state.data_dir, self.storage.data_dir);
        under(&mut flags.storage.jobs_dir, self.storage.jobs_dir);
        under(
            &mut flags.storage.min_free_disk,
            bytes(self.storage.min_free_disk),
        );
        under(
            &mut flags.storage.job_log_size,
            bytes(self.storage.job_log_size),
        );
        under(
            &mut flags.storage.ledger_retain,
            time(self.storage.ledger_retain),
        );
        let image_gc = self.storage.image_gc.map(|age| age.0);
        under(&mut flags.storage.image_gc, image_gc);
        under(&mut common.log_level, self.logging.level);
        under(&mut common.log_format, self.logging.format);
        self.orchestrator.psk_file
    }

    /// The same for a doctor that looks at what the node would do.
    pub(crate) fn fill_doctor(self, args: &mut DoctorArgs) {
        under(&mut args.orchestrator, self.orchestrator.url);
        under(&mut args.worker_listen, self.worker_api.listen);
        under(&mut args.podman.engine, self.sandbox.engine);
        under(&mut args.podman.engine_runtime, self.sandbox.runtime);
        under(&mut args.inference, self.inference.mode);
        under(
            &mut args.inference_port,
            self.inference.port.map(NonZeroU16::get),
        );
        under(&mut args.state.data_dir, self.storage.data_dir);
        under(&mut args.storage.jobs_dir, self.storage.jobs_dir);
        under(
            &mut args.storage.min_free_disk,
            self.storage.min_free_disk.map(|size| size.0),
        );
    }
}

/// What is wrong, and at which key. The line's value is left out: a secret may stand where it has no
/// place.
fn told(error: &serde_saphyr::Error, text: &str) -> String {
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

fn under<T>(said: &mut Option<T>, otherwise: Option<T>) {
    *said = said.take().or(otherwise);
}

fn under_list<T>(said: &mut Vec<T>, otherwise: Vec<T>) {
    if said.is_empty() {
        *said = otherwise;
    }
}

#[cfg(test)]
mod tests;
