//! The program that is started as podman, and its environment.

use super::{EngineError, containers_conf};
use crate::environment;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::process::Command;

/// A program and the settings that it reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    path: PathBuf,
    /// Settings file of a podman, see [`containers_conf`].
    settings: Option<PathBuf>,
    /// Directory for temporary files, where it is not the one of this process.
    #[serde(skip)]
    temp_dir: Option<PathBuf>,
}

impl Program {
    /// A program that reads no settings of ours.
    pub fn plain(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            settings: None,
            temp_dir: None,
        }
    }

    /// A podman. Its settings file is written into `dir` and has to stay for as long as its containers.
    pub fn podman(path: impl Into<PathBuf>, dir: &Path) -> Result<Self, EngineError> {
        Ok(Self {
            path: path.into(),
            settings: Some(containers_conf::write(dir)?),
            temp_dir: None,
        })
    }

    /// The same program, with its temporary files in `dir`.
    pub(super) fn with_temp_dir(&self, dir: &Path) -> Self {
        Self {
            temp_dir: Some(dir.to_owned()),
            ..self.clone()
        }
    }

    /// Name or path of the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The command that starts it, without arguments.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // A process group of its own: Ctrl-C at a terminal is for cynode, which ends its containers in order.
        command.stdin(Stdio::null()).process_group(0);
        // Podman and conmon live as long as a job does, and need none of our secrets.
        environment::scrub(&mut command);
        if let Some(settings) = &self.settings {
            command
                .env(containers_conf::CONF_VARIABLE, settings)
                .env_remove(containers_conf::CONF_OVERRIDE_VARIABLE)
                .env_remove(containers_conf::USERNS_VARIABLE);
        }
        if let Some(dir) = &self.temp_dir {
            command.env("TMPDIR", dir);
        }
        command
    }
}
