//! One container: the arguments of `podman run`, and the process that runs it.

use super::{
    Engine, EngineError, containers_conf,
    process::{Process, message_or_status, read_stderr_tail},
};
use crate::background;
use crate::sandbox_init;
use command_fds::{CommandFdExt as _, FdMapping};
use std::{io, os::fd::OwnedFd, path::Path, process::Stdio, time::Duration};

/// What a container starts from.
#[derive(Clone, Copy)]
pub enum Root<'a> {
    /// An image, by id.
    Image(&'a str),
    /// A directory; only to find out what this host can do.
    Directory(&'a Path),
}

/// Everything about a container that differs from one to the next. None of it is a job's own
/// text: command and environment go to init over its socket, never through here.
pub struct ContainerSpec<'a> {
    /// Unique on this host.
    pub name: &'a str,
    /// What it starts from.
    pub root: Root<'a>,
    /// Our static binary, to be its init.
    pub init: &'a Path,
    /// The directory that becomes `/workspace`; none for a probe.
    pub workspace: Option<&'a Path>,
    /// `name=value` pairs.
    pub labels: &'a [(&'a str, String)],
    /// Init's descriptors 3, 4 and 5.
    pub descriptors: [OwnedFd; sandbox_init::DESCRIPTORS as usize],
}

/// A running `podman run`. Dropped before its end, podman is ended.
pub struct Container {
    podman: Process,
    /// What podman says on stderr, until it was taken.
    message: Option<tokio::task::JoinHandle<String>>,
    outcome: Option<Result<(), String>>,
}

impl Container {
    /// Waits for podman to end, which it does once the container is gone; what it said, when that
    /// is an error. Can be interrupted, and called again.
    pub async fn wait_exit(&mut self) -> Result<(), String> {
        if self.outcome.is_none() {
            let outcome = self.wait().await;
            self.outcome = Some(outcome);
        }
        self.outcome.clone().unwrap_or(Ok(()))
    }

    async fn wait(&mut self) -> Result<(), String> {
        let status = match self.podman.wait().await {
            Ok(status) => status,
            Err(error) => return Err(error.to_string()),
        };
        if status.success() {
            return Ok(());
        }
        // Somebody who inherited podman's stderr could hold it open for long.
        let message = match self.message.as_mut() {
            Some(message) => tokio::time::timeout(Duration::from_secs(1), message)
                .await
                .ok()
                .and_then(Result::ok),
            None => None,
        };
        self.message = None;
        Err(message_or_status(message.unwrap_or_default(), status))
    }

    /// Exit code of podman, once it has ended by itself: that of the container's PID 1, 128+N where signal N
    /// killed it.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.podman.try_status().and_then(|status| status.code())
    }

    /// Whether podman has ended by a signal; the container may go on then.
    pub fn was_killed(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.podman.try_status();
        status.is_some_and(|status| status.signal().is_some())
    }

    /// Ends a podman that hangs. What it leaves is not known then, whatever its exit code says.
    pub async fn terminate(&mut self) {
        self.podman.terminate().await;
        let ended = || Err("it was told to end".to_owned());
        self.outcome.get_or_insert_with(ended);
    }
}

pub(super) fn spawn(engine: &Engine, spec: &ContainerSpec<'_>) -> Result<Container, EngineError> {
    let mut command = engine.program.command();
    command
        .args(run_args(engine, spec)?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mappings = spec
        .descriptors
        .iter()
        .zip(3..)
        .map(|(descriptor, child_fd)| {
            Ok(FdMapping {
                parent_fd: descriptor.try_clone()?,
                child_fd,
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    let mut podman = Process::start(&engine.program, &mut command)?;
    let stderr = podman.stderr();
    Ok(Container {
        podman,
        message: Some(background::spawn(
            "read_podman_stderr",
            read_stderr_tail(stderr),
        )),
        outcome: None,
    })
}

/// How every container is run that is to end by itself: closed in, without a network, and with our
/// own binary as its init.
pub(super) fn sandbox_args(
    engine: &Engine,
    name: &str,
    init: &Path,
) -> Result<Vec<String>, EngineError> {
    let mut list = base_args(engine);
    let sandbox = [
        "--rm",
        "--network=none",
        // The command writes into our own pipes; podman's copy would be a second one.
        "--log-driver=none",
        // A rootless podman is two processes; the second gets TERM when the first is killed, which is no
        // word to the command. What ends that comes from us, by init.
        "--sig-proxy=false",
        // When memory runs out, any process of any sandbox goes before one of the host. Set by a podman with
        // CAP_SYS_RESOURCE, no process can take that back.
        "--oom-score-adj=1000",
        // Podman copies the node's proxy variables into a container unless told otherwise.
        "--http-proxy=false",
    ];
    list.extend(sandbox.map(str::to_owned));
    list.push(format!("--name={name}"));
    list.push(format!(
        "--volume={}:{}:ro,z",
        volume_source(init)?,
        sandbox_init::PATH
    ));
    Ok(list)
}

/// Has our binary be the helper of this name, as the container's only program.
pub(super) fn entrypoint_arg(argument: &str) -> String {
    format!("--entrypoint=[\"{}\",\"{argument}\"]", sandbox_init::PATH)
}

fn run_args(engine: &Engine, spec: &ContainerSpec<'_>) -> Result<Vec<String>, EngineError> {
    let mut list = sandbox_args(engine, spec.name, spec.init)?;
    list.push(format!("--preserve-fds={}", sandbox_init::DESCRIPTORS));
    list.extend(label_args(spec.labels));
    if let Some(workspace) = spec.workspace {
        let source = volume_source(workspace)?;
        list.push(format!(
            "--volume={source}:{}:rw,U,Z,nosuid,nodev",
            sandbox_init::WORKSPACE
        ));
        list.push(format!("--workdir={}", sandbox_init::WORKSPACE));
    }
    list.push(entrypoint_arg(sandbox_init::ARGUMENT));
    match spec.root {
        Root::Image(id) => list.push(id.to_owned()),
        Root::Directory(path) => list.extend(["--rootfs".to_owned(), path.display().to_string()]),
    }
    Ok(list)
}

/// `run`, the way that works on this host, and what is closed in every container of ours.
pub(super) fn base_args(engine: &Engine) -> Vec<String> {
    let mut list = Vec::new();
    if let Some(runtime) = &engine.runtime_config.runtime {
        list.push(format!("--runtime={runtime}"));
    }
    let closed = [
        "run",
        containers_conf::NO_DEFAULT_MOUNTS_ARG,
        "--pull=never",
        // Volumes that an image asks for would be made on the host, filled from the image and mounted over what the
        // runtime makes, such as /dev; each takes one of podman's locks.
        "--image-volume=ignore",
        // What containers.conf could choose for all containers, should it reach them after all: the
        // host's namespaces, its environment, another init in our place, privileges.
        "--pid=private",
        "--ipc=private",
        "--uts=private",
        "--cgroupns=private",
        "--userns=host",
        "--env-host=false",
        "--init=false",
        "--privileged=false",
        // A node under systemd has a socket to tell of its readiness, which is no container's business.
        "--sdnotify=ignore",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        // An image's health check would run on a timer of the host's systemd.
        "--no-healthcheck",
        // Podman mounts cgroups and more for programs that look like an init.
        "--systemd=false",
    ];
    list.extend(closed.map(str::to_owned));
    let ulimits = engine.runtime_config.ulimits.iter();
    list.extend(ulimits.map(|limit| format!("--ulimit={limit}")));
    list
}

pub(super) fn label_args(labels: &[(&str, String)]) -> impl Iterator<Item = String> {
    labels
        .iter()
        .map(|(name, value)| format!("--label={name}={value}"))
}

/// `--volume` splits at colons and has no way to quote one.
fn volume_source(path: &Path) -> Result<&str, EngineError> {
    path.to_str().filter(|path| path.starts_with('/') && !path.contains(':')).ok_or_else(|| {
        EngineError::Io(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} can't be mounted by podman; choose a --data-dir without ':' and with plain UTF-8", path.display()),
        ))
    })
}
