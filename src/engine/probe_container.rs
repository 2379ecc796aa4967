//! A container that shows whether sandboxes run here, and are isolated.
//!
//! Its root is an empty directory and its only program our own init, so that no image is needed. Init reports its
//! view of the container, which has to be as isolated as it was asked to be ([`isolation`]), and is given a command
//! that doesn't exist: when it reports that, all of podman, runtime, mounts and descriptors has worked.

use super::{
    ClientEnd, Container, ContainerSpec, Engine, EngineError, Root, isolation, labels,
    limits::Limits,
    probe::{PROBE_NAME_PREFIX, ProbeEnv},
};
use crate::sandbox_init::{
    self,
    view::{self, View},
    wire::{ExecEnd, ExecNumber, ExecSpec, Hello, InitRefusal, InitRequest, Report, take_report},
};
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Probes of the same settings, where podman is killed.
const MAX_TRIES: usize = 2;

/// Runs a probe container to its end. One whose podman is killed says nothing about podman, and is repeated once: other
/// settings than those that work must not be taken for it.
pub(super) async fn run_probe(
    engine: &Engine,
    probe_env: ProbeEnv<'_>,
    workspace: Option<&Path>,
) -> Result<(), EngineError> {
    for _ in 0..MAX_TRIES {
        let root = make_root(probe_env.scratch.join("probe")).await?;
        let outcome = try_container(engine, probe_env, &root, workspace).await;
        remove_root(root).await;
        if outcome? {
            return Ok(());
        }
    }
    Err(run_failed("it was killed again and again".to_owned()))
}

/// Creates the root of a container that has no image: empty but for the mount point of the workspace.
pub(super) async fn make_root(root: PathBuf) -> io::Result<PathBuf> {
    let made = tokio::task::spawn_blocking(move || {
        // Podman fills the root with mount points, so each container gets a new one.
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        // One by one: where the scratch directory is gone, no other is created in its place.
        fs::create_dir(&root)?;
        fs::create_dir(root.join(sandbox_init::WORKSPACE.trim_start_matches('/')))?;
        Ok(root)
    });
    made.await?
}

/// Removes the root of a container. One that is left is removed before the next container.
pub(super) async fn remove_root(root: PathBuf) {
    // Failure and panic mean the same here.
    let _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(root)).await;
}

/// Runs one container; false where its podman was killed by someone else.
async fn try_container(
    engine: &Engine,
    probe_env: ProbeEnv<'_>,
    root: &Path,
    workspace: Option<&Path>,
) -> Result<bool, EngineError> {
    let (mut socket, init_socket) = UnixStream::pair()?;
    socket
        .write_all(&Hello::of_this_process()?.encode())
        .await?;
    let owner = probe_env.node_uuid.map(|uuid| {
        [
            (labels::NODE, uuid.to_owned()),
            (labels::JOB, "probe".to_owned()),
        ]
    });
    let name = format!("{PROBE_NAME_PREFIX}{}", uuid::Uuid::new_v4());
    let mut container = engine.spawn(&ContainerSpec {
        name: &name,
        root: Root::Directory(root),
        init: probe_env.init,
        workspace,
        labels: owner.as_ref().map_or(&[], |labels| labels.as_slice()),
        limits: Limits::default(),
        device_args: &[],
        descriptors: [blocking(init_socket)?, dev_null()?, dev_null()?],
        listeners: None,
        inference: false,
        egress: false,
        detached: false,
    })?;
    let conversation = async {
        let answer = tokio::select! {
            answer = talk_to_init(socket) => answer,
            exit = container.wait_exit() => {
                return Err(run_failed(exit.err().unwrap_or_else(|| "init did not report".to_owned())));
            }
        };
        evaluate(engine, &mut container, answer).await
    };
    let outcome = match timeout(PROBE_TIMEOUT, conversation).await {
        Ok(outcome) => outcome,
        Err(_) => {
            container.terminate().await;
            Err(EngineError::TimedOut {
                call: "run".to_owned(),
                limit: PROBE_TIMEOUT,
            })
        }
    };
    let Err(error) = outcome else {
        return Ok(true);
    };
    let is_timeout = matches!(error, EngineError::TimedOut { .. });
    let is_killed = !is_timeout && container.wait_client().await == ClientEnd::Killed;
    // Where podman hangs, the next collection of orphans finds the label.
    let _ = timeout(PROBE_TIMEOUT, engine.remove_container(&name)).await;
    if is_killed { Ok(false) } else { Err(error) }
}

/// A socket for init, which doesn't poll.
fn blocking(socket: UnixStream) -> io::Result<OwnedFd> {
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

fn dev_null() -> io::Result<OwnedFd> {
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(null.into())
}

fn run_failed(message: String) -> EngineError {
    EngineError::Failed {
        call: "run".to_owned(),
        message,
    }
}

/// Answer of init to a probe.
#[derive(Debug)]
enum InitAnswer {
    Refused(InitRefusal),
    Ended(View, ExecEnd),
}

async fn talk_to_init(mut socket: UnixStream) -> io::Result<InitAnswer> {
    let mut read = Vec::new();
    match next_report(&mut socket, &mut read).await? {
        (ExecNumber::SANDBOX, Report::Ready { .. }) => {}
        (ExecNumber::SANDBOX, Report::Refused(refusal)) => return Ok(InitAnswer::Refused(refusal)),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    let inspect = InitRequest::Inspect.encode(ExecNumber::SANDBOX);
    socket.write_all(&inspect).await?;
    let (ExecNumber::SANDBOX, Report::View(view)) = next_report(&mut socket, &mut read).await?
    else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let view = View::decode(&String::from_utf8_lossy(&view));
    let exec = ExecSpec {
        command: vec!["/nothing/here".into()],
        ..ExecSpec::default()
    };
    socket.write_all(&exec.encode(ExecNumber::FIRST)).await?;
    loop {
        match next_report(&mut socket, &mut read).await? {
            (ExecNumber::FIRST, Report::Ended(end)) => return Ok(InitAnswer::Ended(view, end)),
            (ExecNumber::FIRST, _) => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

async fn next_report(
    socket: &mut UnixStream,
    read: &mut Vec<u8>,
) -> io::Result<(ExecNumber, Report)> {
    loop {
        if let Some(report) = take_report(read)? {
            return Ok(report);
        }
        if socket.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn evaluate(
    engine: &Engine,
    container: &mut Container,
    answer: io::Result<InitAnswer>,
) -> Result<(), EngineError> {
    let exit = container.wait_exit().await;
    let findings = match (answer, exit) {
        (Ok(InitAnswer::Refused(InitRefusal::SharedNamespace)), _) => {
            vec![isolation::shared_pid_namespace()]
        }
        (Ok(InitAnswer::Ended(view, ExecEnd::Exited(127))), Ok(())) => {
            isolation::findings(&view, &view::namespaces(), engine.info.rootless)
        }
        (_, Err(message)) => return Err(run_failed(message)),
        (answer, Ok(())) => return Err(run_failed(format!("init answered {answer:?}"))),
    };
    if findings.is_empty() {
        Ok(())
    } else {
        Err(EngineError::NotIsolated { findings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answer to a probe whose init sends these reports.
    async fn answer_to(reports: &[(ExecNumber, Report)]) -> io::Result<InitAnswer> {
        let (ours, mut init) = UnixStream::pair()?;
        for (exec, report) in reports {
            init.write_all(&report.encode(*exec)).await?;
        }
        init.shutdown().await?;
        talk_to_init(ours).await
    }

    #[tokio::test]
    async fn probe_believes_no_report_of_other_execs() {
        let ready = || (ExecNumber::SANDBOX, Report::Ready { upper: Vec::new() });
        let view = || (ExecNumber::SANDBOX, Report::View(Vec::new()));
        let ended = |exec| (exec, Report::Ended(ExecEnd::Exited(127)));
        let started = (ExecNumber::FIRST, Report::Started);
        let answer = answer_to(&[ready(), view(), started, ended(ExecNumber::FIRST)]).await;
        assert!(
            matches!(answer, Ok(InitAnswer::Ended(_, ExecEnd::Exited(127)))),
            "{answer:?}"
        );
        for reports in [
            vec![ready(), view(), ended(ExecNumber(2))],
            vec![ready(), (ExecNumber(2), Report::View(Vec::new()))],
            vec![ended(ExecNumber::FIRST)],
        ] {
            let error = answer_to(&reports).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{reports:?}");
        }
    }
}
