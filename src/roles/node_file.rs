//! `node.yaml`: what a node's flags say, in a file. A flag or a variable beats it.
//!
//! The file is laid under the parsed arguments, so that from there on there is one way from words to
//! settings. A key that isn't known is an error which names its line: a limit that was misspelt
//! must not be silently without effect.

use crate::{
    cli::{Common, DoctorArgs, LogFormat, LogLevel, NodeArgs, duration, size},
    client::print::note,
    exit::Failure,
    node::InferenceMode,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_saphyr::{SnippetMode, UserMessageFormatter};
use std::{
    io,
    net::SocketAddr,
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
    timeout: Option<Span>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodePart {
    slug: Option<String>,
    name: Option<String>,
    labels: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkerApiPart {
    listen: Option<SocketAddr>,
    public_url: Option<String>,
    max_request_bytes: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SandboxPart {
    engine: Option<PathBuf>,
    runtime: Option<String>,
    max_concurrency: Option<NonZeroU32>,
    allowed_images: Vec<String>,
    default_image: Option<String>,
    max_timeout: Option<Span>,
    shutdown_grace: Option<Span>,
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
    jobs_dir: Option<PathBuf>,
    min_free_disk: Option<Size>,
    job_log_size: Option<Size>,
    ledger_retain: Option<Span>,
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

impl NodeFile {
    /// Reads the named file, or the one at the usual place, if there is one.
    pub(crate) fn find(named: Option<&Path>) -> Result<Option<Self>, Failure> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let wrong =
            |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path)
                .map(Some)
                .map_err(|error| wrong(&told(&error, &text))),
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

    fn parse(text: &str, path: &Path) -> Result<Self, serde_saphyr::Error> {
        // A file of nothing but comments says nothing.
        let file: Option<Self> = serde_saphyr::from_str(text)?;
        let mut file = file.unwrap_or_default();
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn parse(text: &str) -> Result<NodeFile, String> {
        NodeFile::parse(text, Path::new("/etc/node.yaml")).map_err(|error| told(&error, text))
    }

    /// Every key there is. JSON is YAML, too.
    fn whole(text: &str, number: u16) -> Value {
        let time = format!("{number}s");
        json!({
            "orchestrator": {"url": text, "psk_file": "psk", "timeout": time},
            "node": {"slug": text, "name": text, "labels": [text]},
            "worker_api": {"listen": format!("127.0.0.1:{number}"), "public_url": text, "max_request_bytes": number},
            "sandbox": {
                "engine": text, "runtime": text, "max_concurrency": number, "allowed_images": [text],
                "default_image": text, "max_timeout": time, "shutdown_grace": time,
            },
            "inference": {"mode": "off", "port": number, "timeout": time, "start_timeout": time},
            "storage": {
                "data_dir": "state", "jobs_dir": "jobs", "min_free_disk": "1GiB", "job_log_size": "9MiB",
                "ledger_retain": time,
            },
            "logging": {"level": "debug", "format": "json"},
        })
    }

    proptest! {
        #[test]
        fn any_text_is_a_file_or_an_error(text in any::<String>(), near in "[a-d:\\[\\]{}&*!|>\"'#% \n-]{0,40}") {
            let _ = parse(&text);
            let _ = parse(&near);
        }

        #[test]
        fn what_a_file_says_is_what_is_read(text in "\\PC{0,20}", number in 1u16..) {
            let file = parse(&whole(&text, number).to_string()).unwrap();
            prop_assert_eq!(file.orchestrator.url.as_deref(), Some(&*text));
            prop_assert_eq!(file.orchestrator.psk_file.as_deref(), Some(Path::new("/etc/psk")));
            prop_assert_eq!(&file.node.labels, std::slice::from_ref(&text));
            prop_assert_eq!(file.worker_api.listen.unwrap().port(), number);
            prop_assert_eq!(&file.sandbox.allowed_images, &[text]);
            prop_assert_eq!(file.sandbox.max_concurrency.unwrap().get(), u32::from(number));
            prop_assert_eq!(file.sandbox.max_timeout.unwrap().0, Duration::from_secs(number.into()));
            prop_assert_eq!(file.inference.port.unwrap().get(), number);
            prop_assert_eq!(file.storage.data_dir.as_deref(), Some(Path::new("/etc/state")));
        }

        #[test]
        fn a_key_that_is_misspelt_is_an_error_that_shows_it(part in 0usize..8, key in "[a-z]{3,8}") {
            let mut file = whole("x", 1);
            let parts = ["", "/orchestrator", "/node", "/worker_api", "/sandbox", "/inference", "/storage", "/logging"];
            let at = file.pointer_mut(parts[part]).unwrap().as_object_mut().unwrap();
            prop_assume!(!at.contains_key(&key));
            at.insert(key.clone(), json!(1));
            let error = parse(&file.to_string()).err().unwrap();
            prop_assert!(error.contains(&key) && error.contains("line 1"), "{}", error);
        }
    }
}
