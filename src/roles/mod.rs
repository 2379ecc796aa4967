//! Roles of the process: from raw arguments to settings, and each role's start and end.

mod allocator;
mod backup;
mod credentials;
mod dev;
mod egress;
mod failures;
mod logging;
pub(crate) mod node_file;
mod process;
mod settings;
mod systemd;
mod tls;

pub use backup::backup;
pub(crate) use credentials::join_token_of_variables;
pub use dev::dev;
pub(crate) use settings::data_dir_path;

use crate::{
    cli::{
        self, Command, DoctorArgs, NodeArgs, PskFlags, ServeOrchestratorArgs, WorkerArgs,
        old_name_notices,
    },
    exit::Failure,
    http::server::{Shutdown, shutdown_requested},
    node::{self, NodeError, gpu},
    orchestrator,
    secrets::read_role_secret,
    worker::{self, AccessGrant, JobPolicy, PreparedWorker},
};
use credentials::{has_join_variable, has_psk_variable};
use node_file::NodeFile;
use process::{run_reloadable_role, run_role};
use settings::{
    node_settings, open_data_dir, orchestrator_settings, parse_worker_urls, shutdown_grace,
    validate_url, worker_settings,
};
use std::{
    ffi::OsString,
    io::{self, Write as _},
    time::Duration,
};

/// Time limit for an answer of the orchestrator, where the operator sets none.
const DEFAULT_ORCHESTRATOR_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that may wait to be accepted by a Worker API.
const LISTEN_BACKLOG: u32 = 1024;
/// Notice about a join token among the arguments.
const JOIN_NOTICE: &str = "the join token stands in this process's arguments, where every user of this machine can read \
     it; --join-file FILE (- is stdin) or CYNODE_JOIN keeps it private";
/// Pre-shared key in place of one that only a flag gives: a valid one.
const PLACEHOLDER_PSK: &str = "a key that a flag gives to the node";

/// Runs `cynode serve-orchestrator`.
pub fn serve_orchestrator(args: ServeOrchestratorArgs) -> Result<(), Failure> {
    let notices = notices("serve-orchestrator", Some(&args.psk))?;
    let data_dir = open_data_dir(&args.state)?;
    let settings = orchestrator::Settings {
        control_listen: args.control_listen,
        public_url: args
            .public_url
            .map(|url| validate_url("--public-url", url))
            .transpose()?,
        worker_urls: parse_worker_urls(&args.worker_url)?,
        worker_url_allow: args.worker_url_allow,
        require_inference: args.require_inference,
        drill: args.drill,
        models: orchestrator::ModelSettings {
            concurrency: args.models.queue.inference_concurrency,
            queue: args.models.queue.inference_queue,
            timeout: args.models.inference_timeout,
        },
        ..orchestrator_settings(args.flags, &args.psk)?
    };
    let status = if settings.drill {
        "runs as a drill"
    } else {
        "takes tasks"
    };
    tls::check_public_url(settings.public_url.as_deref(), &settings.tls)?;
    let reloads = settings.tls.is_reloadable();
    run_reloadable_role(&args.log, &notices, reloads, async |shutdown| {
        let mut running =
            orchestrator::start(&data_dir, settings, shutdown.clone(), print_banner).await?;
        systemd::notify_ready(status);
        wait_for_shutdown(shutdown, &mut running).await?;
        running.wait_stopped().await;
        Ok(())
    })
}

/// Runs `cynode node`.
pub fn node(mut args: NodeArgs) -> Result<(), Failure> {
    let mut notices = notices("node", Some(&args.psk))?;
    let file = NodeFile::load(args.config.as_deref())?.unwrap_or_default();
    notices.extend(file.old_key_notices());
    if args.join.join.is_some() {
        notices.push(JOIN_NOTICE.to_owned());
    }
    let files = file.apply_to(&mut args);
    let (state, log) = (args.state.clone(), args.log.clone());
    let grace = shutdown_grace(&args.sandbox.engine);
    let settings = node_settings(args, &files)?;
    let data_dir = open_data_dir(&state)?;
    run_role(&log, &notices, async |shutdown| {
        // A later notification would hold up a machine's boot while the orchestrator is unreachable.
        let on_prepared = || systemd::notify_ready("joining the orchestrator");
        let started = node::start(&data_dir, settings, shutdown.clone(), on_prepared).await;
        let mut running = match started {
            Err(NodeError::Stopped) => return Ok(()),
            started => started?,
        };
        systemd::notify_status("takes jobs");
        tokio::select! {
            () = shutdown_requested(shutdown) => running.close(grace).await,
            () = running.wait_for_failure() => return Err(component_failed("the node")),
        }
        Ok(())
    })
}

/// Checks the settings that a node on this machine would find, for `cynode doctor`. Returns the notices that the node
/// would log.
pub(crate) fn check_node(doctor: &DoctorArgs) -> Result<Vec<String>, Failure> {
    let Some(file) = NodeFile::load(doctor.config.as_deref())? else {
        // Perhaps no node's machine: a variable may be another role's, under its present name.
        return old_name_notices("doctor");
    };
    let mut notices = old_name_notices("node")?;
    notices.extend(file.old_key_notices());
    // The role itself would read the environment, and flags that are not known here.
    let cli = cli::parse_from(&["cynode", "node"].map(OsString::from))
        .map_err(|error| Failure::usage(error.to_string()))?;
    let Command::Node(mut args) = cli.command else {
        return Err(Failure::internal(
            "the arguments of a node could not be parsed",
        ));
    };
    let files = file.apply_to(&mut args);
    // A setting that the file leaves to flags counts as given.
    if files.join.is_none() && !has_join_variable() {
        let orchestrator = args.orchestrator.or(doctor.orchestrator.clone());
        let unknown = if args.trust.pin.is_some() {
            "https://127.0.0.1"
        } else {
            "http://127.0.0.1"
        };
        args.orchestrator = orchestrator.or_else(|| Some(unknown.to_owned()));
        if files.psk.is_none() && !has_psk_variable() {
            args.psk.psk = Some(PLACEHOLDER_PSK.to_owned());
        }
    }
    node_settings(*args, &files)?.check()?;
    Ok(notices)
}

/// Runs `cynode worker`.
pub fn worker(args: WorkerArgs) -> Result<(), Failure> {
    let notices = notices("worker", None)?;
    let data_dir = open_data_dir(&args.state)?;
    let token = read_role_secret(
        "--token-file",
        args.token_file.as_deref(),
        "CYNODE_WORKER_TOKEN",
    )?
    .ok_or_else(|| {
        Failure::usage(
            "the worker needs the token that callers must show: give --token-file FILE or CYNODE_WORKER_TOKEN",
        )
    })?;
    let grace = shutdown_grace(&args.sandbox.engine);
    let listen = args.sandbox.worker_listen.unwrap_or(worker::DEFAULT_LISTEN);
    let settings = worker_settings(&args.sandbox)?;
    run_role(&args.log, &notices, async |shutdown| {
        let mut prepared = tokio::select! {
            prepared = PreparedWorker::prepare(&data_dir, settings) => prepared?,
            () = shutdown_requested(shutdown.clone()) => return Ok(()),
        };
        let gpus = gpu::candidates(&gpu::detect().await);
        prepared.offer_gpus(gpus).await;
        data_dir.update_addresses(|addresses| addresses.worker = None);
        let (socket, bound) = worker::reserve(listen)?;
        let access = AccessGrant {
            token,
            orchestrator: None,
            policy: JobPolicy::default(),
        };
        let worker = prepared.start(access, None);
        worker.listen(socket.listen(LISTEN_BACKLOG)?, None);
        data_dir.update_addresses(|addresses| addresses.worker = Some(bound));
        tracing::info!(worker = %bound, "the worker listens");
        systemd::notify_ready("takes jobs");
        shutdown_requested(shutdown).await;
        worker.close(grace, true).await;
        Ok(())
    })
}

/// Notices to log once the log is open: old names of settings, and a secret among the arguments.
fn notices(command: &str, psk: Option<&PskFlags>) -> Result<Vec<String>, Failure> {
    let mut notices = old_name_notices(command)?;
    if psk.is_some_and(|psk| psk.psk.is_some()) {
        notices.push(
            "the pre-shared key stands in this process's arguments, where every user of this machine can read it; \
             --psk-file FILE (- is stdin) or CYNODE_PSK keeps it private"
                .to_owned(),
        );
    }
    Ok(notices)
}

/// Waits for the shutdown. All parts end on it, too, so it is checked first.
async fn wait_for_shutdown(
    shutdown: Shutdown,
    running: &mut orchestrator::RunningOrchestrator,
) -> Result<(), Failure> {
    tokio::select! {
        biased;
        () = shutdown_requested(shutdown.clone()) => return Ok(()),
        () = running.wait_for_failure() => {}
    }
    if *shutdown.borrow() {
        return Ok(());
    }
    Err(component_failed("the orchestrator"))
}

fn component_failed(role: &str) -> Failure {
    Failure::internal(format!(
        "a part of {role} failed; the log above shows why; start it again"
    ))
}

/// Prints the generated secrets of a first start, which are never shown again.
fn print_banner(banner: &orchestrator::Banner) -> io::Result<()> {
    print_stdout(&banner.to_string())
}

/// Prints a text for people on stdout, never through the logger.
fn print_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
}
