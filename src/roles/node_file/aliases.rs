//! Second names of keys in `node.yaml`: those of the previous release, and those of other implementations of the
//! contract. A file that uses both names of a setting is refused, and so is a value that this node can't follow.
//!
//! | second name | key |
//! |---|---|
//! | `version: 1` | none |
//! | `orchestrator.registration_psk_file` | `orchestrator.psk_file` |
//! | `node.id` | `node.slug` |
//! | `worker_api.listen_host`, `.listen_port` | `worker_api.listen` |
//! | `worker_api.public_base_url`; `worker_api.public_url` (old) | `worker_api.advertise_url` |
//! | `sandbox.mode: allow`, `sandbox_only` | none, `inference.mode: off` |
//! | `sandbox.runtime: podman` | `sandbox.engine` |
//! | `sandbox.default_image` (old) | `sandbox.prefetch_images` |
//! | `sandbox.timeouts.default_seconds`, `.max_seconds` | `sandbox.default_timeout`, `.max_timeout` |
//! | `inference.mode: allow`, `disabled`, `require` | `auto`, `off`, `on` |
//! | `inference.timeout` (old) | `inference.pull_timeout` |
//! | `storage.state_dir` | `storage.data_dir` |
//! | `storage.ledger_retain` (old) | `storage.result_retention` |

use super::{NodeFile, SandboxMode, SandboxSection};
use crate::{api::nodes::InferenceMode, worker::DEFAULT_LISTEN};
use std::{net::SocketAddr, time::Duration};

/// A key and its second name.
#[derive(Clone, Copy)]
pub(super) struct Alias {
    pub(super) old: &'static str,
    pub(super) new: &'static str,
}

const fn alias(old: &'static str, new: &'static str) -> Alias {
    Alias { old, new }
}

impl NodeFile {
    /// Moves values from second names to the keys.
    pub(super) fn resolve_aliases(&mut self) -> Result<(), String> {
        if let Some(version) = self.version.filter(|version| *version != 1) {
            return Err(format!(
                "version {version} is not supported; this release reads version 1"
            ));
        }
        let (section, names) = (
            &mut self.orchestrator,
            alias(
                "orchestrator.registration_psk_file",
                "orchestrator.psk_file",
            ),
        );
        take_alias(
            names,
            &mut section.psk_file,
            section.registration_psk_file.take(),
        )?;
        let section = &mut self.node;
        take_alias(
            alias("node.id", "node.slug"),
            &mut section.slug,
            section.id.take(),
        )?;
        let section = &mut self.storage;
        let names = alias("storage.state_dir", "storage.data_dir");
        take_alias(names, &mut section.data_dir, section.state_dir.take())?;
        self.resolve_worker_api()?;
        self.sandbox.resolve_timeouts()?;
        self.resolve_old_keys()?;
        self.resolve_modes()
    }

    fn resolve_worker_api(&mut self) -> Result<(), String> {
        let section = &mut self.worker_api;
        let names = alias("worker_api.public_base_url", "worker_api.advertise_url");
        take_alias(
            names,
            &mut section.advertise_url,
            section.public_base_url.take(),
        )?;
        let (host, port) = (section.listen_host.take(), section.listen_port.take());
        let listen = (host.is_some() || port.is_some()).then(|| {
            SocketAddr::new(
                host.unwrap_or(DEFAULT_LISTEN.ip()),
                port.unwrap_or(DEFAULT_LISTEN.port()),
            )
        });
        let names = alias("worker_api.listen_host or listen_port", "worker_api.listen");
        take_alias(names, &mut section.listen, listen).map(drop)
    }

    /// Keys of the previous release.
    fn resolve_old_keys(&mut self) -> Result<(), String> {
        let (api, sandbox) = (&mut self.worker_api, &mut self.sandbox);
        let (inference, storage) = (&mut self.inference, &mut self.storage);
        let images = sandbox.default_image.take().map(|image| vec![image]);
        let mut prefetch = Some(std::mem::take(&mut sandbox.prefetch_images));
        prefetch = prefetch.filter(|images| !images.is_empty());
        let url = alias("worker_api.public_url", "worker_api.advertise_url");
        let image = alias("sandbox.default_image", "sandbox.prefetch_images");
        let pull = alias("inference.timeout", "inference.pull_timeout");
        let results = alias("storage.ledger_retain", "storage.result_retention");
        let used = [
            take_alias(url, &mut api.advertise_url, api.public_url.take())?,
            take_alias(image, &mut prefetch, images)?,
            take_alias(pull, &mut inference.pull_timeout, inference.timeout.take())?,
            take_alias(
                results,
                &mut storage.result_retention,
                storage.ledger_retain.take(),
            )?,
        ];
        sandbox.prefetch_images = prefetch.unwrap_or_default();
        self.old_keys = used.into_iter().flatten().collect();
        Ok(())
    }

    /// Modes of other implementations.
    fn resolve_modes(&mut self) -> Result<(), String> {
        match self.sandbox.runtime.as_deref() {
            Some("podman") => self.sandbox.runtime = None,
            Some("docker") => {
                return Err(
                    "sandbox.runtime: docker is not supported; sandboxes need podman".to_owned(),
                );
            }
            _ => {}
        }
        match (self.sandbox.mode, self.inference.mode) {
            (None | Some(SandboxMode::Allow), _) => Ok(()),
            (Some(SandboxMode::SandboxOnly), Some(InferenceMode::On)) => Err(
                "sandbox.mode: sandbox_only and an inference.mode that requires a model server contradict each \
                 other; keep one"
                    .to_owned(),
            ),
            (Some(SandboxMode::SandboxOnly), _) => {
                self.inference.mode = Some(InferenceMode::Off);
                Ok(())
            }
            (Some(SandboxMode::Disabled), _) => Err(
                "sandbox.mode: disabled is not supported; a node of this release always runs sandboxes, and \
                 cynode nodes drain keeps jobs away from it"
                    .to_owned(),
            ),
        }
    }
}

impl SandboxSection {
    fn resolve_timeouts(&mut self) -> Result<(), String> {
        let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        let timeouts = &mut self.timeouts;
        take_alias(
            alias(
                "sandbox.timeouts.default_seconds",
                "sandbox.default_timeout",
            ),
            &mut self.default_timeout,
            seconds(timeouts.default_seconds.take()),
        )?;
        take_alias(
            alias("sandbox.timeouts.max_seconds", "sandbox.max_timeout"),
            &mut self.max_timeout,
            seconds(timeouts.max_seconds.take()),
        )
        .map(drop)
    }
}

/// Moves the value of a second name to its key. Returns the names where the second one was used.
fn take_alias<T>(
    names: Alias,
    key: &mut Option<T>,
    value: Option<T>,
) -> Result<Option<Alias>, String> {
    let Alias { old, new } = names;
    match (key.is_some(), value) {
        (_, None) => Ok(None),
        (true, Some(_)) => Err(format!(
            "{new} and {old} are two names of one setting; keep {new}"
        )),
        (false, value) => {
            *key = value;
            Ok(Some(names))
        }
    }
}
