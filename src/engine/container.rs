//! One container: the flags of `podman run`, each with its reason, and the podman process that starts it.

use super::{
    Engine, EngineError,
    call::{message_or_status, read_stderr_tail},
    containers_conf,
    limits::Limits,
    process::Process,
};
use crate::{background, backoff::Backoff, sandbox_init};
use command_fds::{CommandFdExt as _, FdMapping};
use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    fs,
    io::AsyncReadExt as _,
    process::ChildStdout,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Argument that has no hook pass devices of NVIDIA.
const NO_HOOKED_GPUS_ARG: &str = "--env=NVIDIA_VISIBLE_DEVICES=void";

/// Length of the id of a container, in hexadecimal digits.
const ID_DIGITS: usize = 64;
/// Shortest and longest pause between two looks whether a container is removed.
const MIN_LOOK_INTERVAL: Duration = Duration::from_millis(5);
const MAX_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Root file system of a container.
#[derive(Clone, Copy)]
pub enum Root<'a> {
    /// An image, by id.
    Image(&'a str),
    /// A directory, for a probe.
    Directory(&'a Path),
}

/// Properties of one container. None of them is a job's own text: command and environment go to init over its socket,
/// never onto podman's command line.
pub struct ContainerSpec<'a> {
    /// Name, unique on this host.
    pub name: &'a str,
    /// Root file system.
    pub root: Root<'a>,
    /// Static copy of our binary, its init.
    pub init: &'a Path,
    /// Directory that is mounted as `/workspace`; `None` for a probe.
    pub workspace: Option<&'a Path>,
    /// Labels, as pairs of name and value.
    pub labels: &'a [(&'a str, String)],
    /// Limits of its resources.
    pub limits: Limits,
    /// Further arguments of podman, for devices.
    pub device_args: &'a [String],
    /// Descriptors 3, 4 and 5 of init.
    pub descriptors: [OwnedFd; sandbox_init::DESCRIPTORS as usize],
    /// Descriptor 6 of init, where it opens listeners.
    pub listeners: Option<OwnedFd>,
    /// Whether one of them is the Unix socket for calls of models.
    pub inference: bool,
    /// Whether one of them is for the proxy.
    pub egress: bool,
    /// Whether podman ends once the container has started. It takes tens of MiB of memory for as long as it runs.
    pub detached: bool,
}

/// How a `podman run` has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientEnd {
    /// The container has started, and goes on without it.
    Detached,
    /// Podman could not start the container.
    Failed,
    /// A signal has ended podman. The container may run.
    Killed,
}

/// A container and its `podman run`, which is ended when dropped.
pub struct Container {
    podman: Process,
    /// Podman's directory of containers.
    directory: PathBuf,
    /// Id that podman prints of a detached container, until it has been awaited.
    id: Option<JoinHandle<String>>,
    /// End of podman's stderr, until it has been awaited.
    message: Option<JoinHandle<String>>,
    outcome: Option<Result<String, String>>,
}

impl Container {
    /// Waits for podman to end, which it does once a detached container has started, and any other is removed. Fails with
    /// podman's message. Can be dropped and called again.
    pub async fn wait_exit(&mut self) -> Result<(), String> {
        self.wait_outcome().await.map(drop)
    }

    async fn wait_outcome(&mut self) -> Result<String, String> {
        if let Some(outcome) = &self.outcome {
            return outcome.clone();
        }
        let outcome = self.wait().await;
        self.outcome.insert(outcome).clone()
    }

    async fn wait(&mut self) -> Result<String, String> {
        let status = match self.podman.wait().await {
            Ok(status) => status,
            Err(error) => return Err(error.to_string()),
        };
        if status.success() {
            return Ok(printed(&mut self.id).await);
        }
        let message = printed(&mut self.message).await;
        Err(message_or_status(message, status))
    }

    /// How the podman of a detached container has ended.
    pub async fn wait_client(&mut self) -> ClientEnd {
        use std::os::unix::process::ExitStatusExt as _;
        let outcome = self.wait_outcome().await;
        let status = self.podman.try_status();
        match outcome {
            Ok(_) => ClientEnd::Detached,
            Err(_) if status.is_some_and(|status| status.signal().is_some()) => ClientEnd::Killed,
            Err(_) => ClientEnd::Failed,
        }
    }

    /// Waits until podman has removed a detached container that has ended, which conmon has it do. False where it
    /// won't: after [`terminate`](Self::terminate), and where podman failed to start it.
    pub async fn wait_removed(&mut self) -> bool {
        let Ok(id) = self.wait_outcome().await else {
            return false;
        };
        if id.len() != ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return false;
        }
        let directory = self.directory.join(id);
        let mut pauses = Backoff::new(MIN_LOOK_INTERVAL, MAX_LOOK_INTERVAL);
        // Podman removes it once the container is unmounted. Its record in podman's database goes a moment later, or, where
        // podman is killed just then, with the next collection of orphans. Asking podman would take as long as its removal.
        while fs::try_exists(&directory).await.unwrap_or(true) {
            sleep(pauses.next_delay()).await;
        }
        true
    }

    /// Ends a podman that hangs, and expects no more of the container.
    pub async fn terminate(&mut self) {
        self.podman.terminate().await;
        self.outcome = Some(Err("it was terminated".to_owned()));
    }
}

/// Reads the id of a detached container, which is the first that podman prints.
async fn read_id(stdout: Option<ChildStdout>) -> String {
    let mut id = Vec::new();
    if let Some(stdout) = stdout {
        // One that fails to be read is no id.
        let _ = stdout.take(ID_DIGITS as u64).read_to_end(&mut id).await;
    }
    String::from_utf8_lossy(&id).into_owned()
}

/// Output of a podman that has ended. A child that inherited its pipes may keep them open.
async fn printed(reader: &mut Option<JoinHandle<String>>) -> String {
    let printed = match reader.as_mut() {
        Some(reader) => timeout(Duration::from_secs(1), reader).await,
        None => return String::new(),
    };
    *reader = None;
    printed.ok().and_then(Result::ok).unwrap_or_default()
}

impl Engine {
    /// Starts a container with a podman of its own.
    pub fn spawn(&self, spec: &ContainerSpec<'_>) -> Result<Container, EngineError> {
        let mut command = self.program.command();
        command
            .args(run_args(self, spec)?)
            .stdout(if spec.detached {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stderr(Stdio::piped());
        let descriptors = spec.descriptors.iter().chain(&spec.listeners).zip(3..);
        let mappings = descriptors.map(|(descriptor, child_fd)| {
            Ok(FdMapping {
                parent_fd: descriptor.try_clone()?,
                child_fd,
            })
        });
        let mappings = mappings.collect::<io::Result<Vec<_>>>()?;
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        let mut podman = Process::start(&self.program, &mut command)?;
        let (stdout, stderr) = (podman.stdout(), podman.stderr());
        let id = background::spawn("read_podman_stdout", read_id(stdout));
        let message = background::spawn("read_podman_stderr", read_stderr_tail(stderr));
        let directory = format!("{}-containers", self.info.graph_driver);
        Ok(Container {
            podman,
            directory: self.info.graph_root.join(directory),
            id: Some(id),
            message: Some(message),
            outcome: None,
        })
    }
}

/// Arguments of every container that ends by itself: isolated, without a network, and with our own binary as init.
pub(super) fn sandbox_args(
    engine: &Engine,
    name: &str,
    init: &Path,
) -> Result<Vec<String>, EngineError> {
    let mut list = base_args(engine);
    let sandbox = [
        // The container is removed as soon as init has ended, without a call of ours.
        "--rm",
        // No network device but loopback, and so no host, proxy or metadata service to reach.
        "--network=none",
        // The command writes into our pipes; podman's copy would be a second one.
        "--log-driver=none",
        // A rootless podman is two processes, and the second gets TERM when the first is killed. Init must not get
        // it: only we end the sandbox, through init.
        "--sig-proxy=false",
        // When memory runs out, the kernel kills a process of a sandbox before one of the host. Where podman has
        // CAP_SYS_RESOURCE, no process in the sandbox can undo this.
        "--oom-score-adj=1000",
        // By default podman copies the node's proxy variables into a container.
        "--http-proxy=false",
        // NVIDIA's hook, where a host has it for all containers, passes the devices that this variable names, and images
        // with CUDA name all. Devices come by arguments of their own, and a job that has some gets the variable back.
        NO_HOOKED_GPUS_ARG,
    ];
    list.extend(sandbox.map(str::to_owned));
    list.push(format!("--name={name}"));
    // Read-only: no job may change the init of others. `z`: where SELinux is on, all sandboxes may read it.
    list.push(format!(
        "--volume={}:{}:ro,z",
        volume_source(init)?,
        sandbox_init::PATH
    ));
    Ok(list)
}

/// Makes our binary, run as the helper of this name, the only program of a container.
pub(super) fn entrypoint_arg(argument: &str) -> String {
    format!("--entrypoint=[\"{}\",\"{argument}\"]", sandbox_init::PATH)
}

fn run_args(engine: &Engine, spec: &ContainerSpec<'_>) -> Result<Vec<String>, EngineError> {
    let mut list = sandbox_args(engine, spec.name, spec.init)?;
    list.extend(spec.detached.then(|| "--detach".to_owned()));
    // Init's socket and the pipes for output: no path in the sandbox leads to them.
    let listeners = i32::from(spec.listeners.is_some());
    list.push(format!(
        "--preserve-fds={}",
        sandbox_init::DESCRIPTORS + listeners
    ));
    if spec.inference || spec.egress {
        // Writable for any user that an image names, and empty: init makes a socket in it, and a file of authorities.
        let size = if spec.egress { "4m" } else { "64k" };
        list.push(format!(
            "--tmpfs={}:rw,nosuid,nodev,noexec,notmpcopyup,size={size},mode=1777",
            sandbox_init::listeners::RUNTIME_DIRECTORY
        ));
    }
    list.extend(label_args(spec.labels));
    list.extend(spec.limits.args());
    list.extend_from_slice(spec.device_args);
    if let Some(workspace) = spec.workspace {
        let source = volume_source(workspace)?;
        // `U` gives it to the user of the image, `Z` labels it for this sandbox alone; no file in it gains
        // privileges or opens a device.
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

/// Arguments of every container: `run`, the settings that work on this host, and everything that no container may
/// have.
pub(super) fn base_args(engine: &Engine) -> Vec<String> {
    let mut list = Vec::new();
    // Podman's default runtime fails on some hosts; the probe found this one to work.
    if let Some(runtime) = &engine.runtime_config.runtime {
        list.push(format!("--runtime={runtime}"));
    }
    let closed = [
        "run",
        // Host files that mounts.conf would mount into every container.
        containers_conf::NO_DEFAULT_MOUNTS_ARG,
        // Images are pulled before, with a timeout and permission of their own.
        "--pull=never",
        // Volumes that an image declares would be created on the host, filled from the image and mounted over mounts
        // of the runtime, such as /dev; each takes one of podman's locks.
        "--image-volume=ignore",
        // Settings that containers.conf could choose for all containers, should the host's file reach them after
        // all: the host's namespaces, its environment, another init in place of ours, privileges.
        "--pid=private",
        "--ipc=private",
        "--uts=private",
        "--cgroupns=private",
        "--userns=host",
        "--env-host=false",
        "--init=false",
        "--privileged=false",
        // A node under systemd has a socket to report its readiness, which podman would mount into a container.
        "--sdnotify=ignore",
        // Root in a sandbox is not root of anything, and setuid programs gain nothing.
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        // An image's health check would run by a timer of the host's systemd.
        "--no-healthcheck",
        // By default podman mounts cgroups and more for programs whose name is the one of an init.
        "--systemd=false",
    ];
    list.extend(closed.map(str::to_owned));
    // Where podman may not raise limits, its defaults fail; the probe found these to work.
    let ulimits = engine.runtime_config.ulimits.iter();
    list.extend(ulimits.map(|limit| format!("--ulimit={limit}")));
    list
}

pub(super) fn label_args(labels: &[(&str, String)]) -> impl Iterator<Item = String> {
    labels
        .iter()
        .map(|(name, value)| format!("--label={name}={value}"))
}

/// Path for `--volume`, which splits at colons and has no way to quote one.
fn volume_source(path: &Path) -> Result<&str, EngineError> {
    path.to_str().filter(|path| path.starts_with('/') && !path.contains(':')).ok_or_else(|| {
        EngineError::Io(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} can't be mounted by podman; choose a --data-dir that is UTF-8 and has no ':'", path.display()),
        ))
    })
}
