//! Keys of `node.yaml` as other implementations of the contract name them. Each is a second name of a key of
//! ours; a file that uses both is refused, and so is what this node can't do.
//!
//! | there | here |
//! |---|---|
//! | `version: 1` | nothing to say |
//! | `orchestrator.registration_psk_file` | `orchestrator.psk_file` |
//! | `node.id` | `node.slug` |
//! | `worker_api.listen_host`, `.listen_port` | `worker_api.listen` |
//! | `worker_api.public_base_url` | `worker_api.public_url` |
//! | `sandbox.mode: allow`, `sandbox_only` | nothing to say, `inference.mode: off` |
//! | `sandbox.runtime: podman` | `sandbox.engine` |
//! | `sandbox.timeouts.default_seconds`, `.max_seconds` | `sandbox.default_timeout`, `.max_timeout` |
//! | `inference.mode: allow`, `disabled`, `require` | `auto`, `off`, `on` |
//! | `storage.state_dir` | `storage.data_dir` |

use super::{DurationText, NodeFile, SandboxMode};
use crate::{api::nodes::InferenceMode, worker::DEFAULT_LISTEN};
use std::{net::SocketAddr, time::Duration};

impl NodeFile {
    /// Moves what stands under another name to ours.
    pub(super) fn resolve_aliases(&mut self) -> Result<(), String> {
        if let Some(version) = self.version.filter(|version| *version != 1) {
            return Err(format!(
                "version {version} is not supported; this release reads version 1"
            ));
        }
        let orchestrator = &mut self.orchestrator;
        take_alias(
            ("orchestrator.psk_file", &mut orchestrator.psk_file),
            (
                "orchestrator.registration_psk_file",
                orchestrator.registration_psk_file.take(),
            ),
        )?;
        let node = &mut self.node;
        take_alias(("node.slug", &mut node.slug), ("node.id", node.id.take()))?;
        let api = &mut self.worker_api;
        take_alias(
            ("worker_api.public_url", &mut api.public_url),
            ("worker_api.public_base_url", api.public_base_url.take()),
        )?;
        let (host, port) = (api.listen_host.take(), api.listen_port.take());
        let listen = (host.is_some() || port.is_some()).then(|| {
            SocketAddr::new(
                host.unwrap_or(DEFAULT_LISTEN.ip()),
                port.unwrap_or(DEFAULT_LISTEN.port()),
            )
        });
        take_alias(
            ("worker_api.listen", &mut api.listen),
            ("worker_api.listen_host or listen_port", listen),
        )?;
        let storage = &mut self.storage;
        take_alias(
            ("storage.data_dir", &mut storage.data_dir),
            ("storage.state_dir", storage.state_dir.take()),
        )?;
        self.resolve_sandbox()
    }

    fn resolve_sandbox(&mut self) -> Result<(), String> {
        let sandbox = &mut self.sandbox;
        let seconds = |seconds: Option<u64>| seconds.map(|n| DurationText(Duration::from_secs(n)));
        take_alias(
            ("sandbox.default_timeout", &mut sandbox.default_timeout),
            (
                "sandbox.timeouts.default_seconds",
                seconds(sandbox.timeouts.default_seconds.take()),
            ),
        )?;
        take_alias(
            ("sandbox.max_timeout", &mut sandbox.max_timeout),
            (
                "sandbox.timeouts.max_seconds",
                seconds(sandbox.timeouts.max_seconds.take()),
            ),
        )?;
        match sandbox.runtime.as_deref() {
            Some("podman") => sandbox.runtime = None,
            Some("docker") => {
                return Err(
                    "sandbox.runtime: docker is not supported; sandboxes need podman".to_owned(),
                );
            }
            _ => {}
        }
        match (sandbox.mode, self.inference.mode) {
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

/// Takes the value from whichever of the two names has it.
fn take_alias<T>(ours: (&str, &mut Option<T>), theirs: (&str, Option<T>)) -> Result<(), String> {
    match (ours.1.is_some(), theirs.1) {
        (true, Some(_)) => Err(format!(
            "{} and {} are two names of one setting; keep {}",
            ours.0, theirs.0, ours.0
        )),
        (false, value @ Some(_)) => {
            *ours.1 = value;
            Ok(())
        }
        (_, None) => Ok(()),
    }
}
