//! From raw arguments to the settings of a role, and its start and end.

mod allocator;
mod backup;
mod failures;
pub(crate) mod node_file;
mod process;
mod settings;
mod systemd;

pub use backup::backup;
pub(crate) use settings::data_dir_path;

use crate::{
    api::nodes::InferenceMode,
    cli::{
        Cli, Command, DevArgs, DoctorArgs, LogFlags, NodeArgs, ServeOrchestratorArgs, WorkerArgs,
    },
    client,
    exit::Failure,
    http::server::{Shutdown, shutdown_requested},
    node::{self, NodeError},
    orchestrator,
    secrets::read_secret,
    worker::{self, AccessGrant, JobPolicy, PreparedWorker},
};
use clap::Parser as _;
use node_file::NodeFile;
use process::run_role;
use settings::{
    default_slug, inference_settings, node_settings, open_data_dir, orchestrator_settings,
    parse_worker_urls, sandbox_settings, shutdown_grace, validate_url, warn_of_psk_argument,
    worker_settings,
};
use std::{
    io::{self, Write as _},
    time::Duration,
};
use tokio::sync::watch;

/// How long `dev` waits for the ends of canceled jobs to be stored.
const JOB_ENDS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer of the orchestrator may take, unless the operator says otherwise.
const DEFAULT_ORCHESTRATOR_TIMEOUT: Duration = Duration::from_secs(30);

/// `cynode serve-orchestrator`.
pub fn serve_orchestrator(common: &LogFlags, args: ServeOrchestratorArgs) -> Result<(), Failure> {
    let psk_is_argument = args.psk.psk.is_some();
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
        ..orchestrator_settings(args.flags, &args.psk)?
    };
    run_role(common, async |shutdown| {
        warn_of_psk_argument(psk_is_argument);
        let mut running =
            orchestrator::start(&data_dir, settings, shutdown.clone(), print_banner).await?;
        systemd::notify_ready("takes tasks");
        wait_for_shutdown(shutdown, &mut running).await?;
        running.wait_stopped().await;
        Ok(())
    })
}

/// `cynode node`.
pub fn node(common: &LogFlags, mut args: NodeArgs) -> Result<(), Failure> {
    let mut common = common.clone();
    let psk_is_argument = args.psk.psk.is_some();
    let file = NodeFile::load(args.config.as_deref())?.unwrap_or_default();
    let psk_file = file.apply_to(&mut args, &mut common);
    let (state, grace) = (args.state.clone(), shutdown_grace(&args.sandbox.engine));
    let settings = node_settings(args, psk_file.as_deref())?;
    let data_dir = open_data_dir(&state)?;
    run_role(&common, async |shutdown| {
        warn_of_psk_argument(psk_is_argument);
        // Later would hold up a machine's whole boot while the orchestrator is away.
        let fit = || systemd::notify_ready("joining the orchestrator");
        let mut running = match node::start(&data_dir, settings, shutdown.clone(), fit).await {
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

/// Whether a node would take the settings that it finds, for a doctor that was given these flags.
pub(crate) fn check_node(doctor: &DoctorArgs) -> Result<(), Failure> {
    // As the role itself would read flags that nobody gave, and the environment.
    let cli = Cli::try_parse_from(["cynode", "node"])
        .map_err(|error| Failure::usage(error.to_string()))?;
    let Command::Node(mut args) = cli.command else {
        return Err(Failure::internal(
            "the command line is not what it was made to be",
        ));
    };
    let mut common = cli.common;
    let Some(file) = NodeFile::load(doctor.config.as_deref())? else {
        return Ok(());
    };
    let psk_file = file.apply_to(&mut args, &mut common);
    // What the file leaves to flags is checked by those who see them.
    let unsaid = || "http://127.0.0.1".to_owned();
    args.orchestrator = args
        .orchestrator
        .or(doctor.orchestrator.clone())
        .or_else(|| Some(unsaid()));
    args.psk.psk = psk_file
        .is_none()
        .then(|| "unsaid, and not used".to_owned());
    Ok(node_settings(*args, psk_file.as_deref())?.check()?)
}

/// `cynode worker`.
pub fn worker(common: &LogFlags, args: WorkerArgs) -> Result<(), Failure> {
    let data_dir = open_data_dir(&args.state)?;
    let token = read_secret("--token-file", args.token_file.as_deref(), "CYNODE_WORKER_TOKEN")?.ok_or_else(|| {
        Failure::usage("the worker needs the token that callers must show: --token-file FILE or CYNODE_WORKER_TOKEN")
    })?;
    let grace = shutdown_grace(&args.sandbox.engine);
    let listen = args.sandbox.worker_listen.unwrap_or(worker::DEFAULT_LISTEN);
    let settings = worker_settings(&args.sandbox)?;
    run_role(common, async |shutdown| {
        let prepared = tokio::select! {
            prepared = PreparedWorker::prepare(&data_dir, settings) => prepared?,
            () = shutdown_requested(shutdown.clone()) => return Ok(()),
        };
        data_dir.update_addresses(|addresses| addresses.worker = None);
        let (socket, bound) = worker::reserve(listen)?;
        let access = AccessGrant {
            token,
            orchestrator: None,
            policy: JobPolicy::default(),
        };
        let worker = prepared.serve(socket.listen(1024)?, access, None);
        data_dir.update_addresses(|addresses| addresses.worker = Some(bound));
        tracing::info!(worker = %bound, "the worker listens");
        systemd::notify_ready("takes jobs");
        shutdown_requested(shutdown).await;
        worker.close(grace, true).await;
        Ok(())
    })
}

/// `cynode dev`: the same roles, talking over loopback as they would over a network.
pub fn dev(common: &LogFlags, args: DevArgs) -> Result<(), Failure> {
    let psk_is_argument = args.psk.psk.is_some();
    let data_dir = open_data_dir(&args.state)?;
    let is_asked_for = args.flags.inference_image.is_some();
    let inference = inference_settings(
        &args.inference,
        if is_asked_for {
            InferenceMode::Auto
        } else {
            InferenceMode::Off
        },
    );
    let settings = orchestrator::Settings {
        control_listen: args.control_listen,
        require_inference: match inference.mode {
            InferenceMode::On => true,
            InferenceMode::Auto => is_asked_for,
            InferenceMode::Off => false,
        },
        has_node: true,
        ..orchestrator_settings(args.flags, &args.psk)?
    };
    let sandbox = sandbox_settings(&args.engine)?;
    let grace = shutdown_grace(&args.engine);
    let (identity, worker_listen) = (args.identity, args.worker_listen);
    run_role(common, async |shutdown| {
        warn_of_psk_argument(psk_is_argument);
        // The orchestrator ends after the node, so that it still hears how the node's jobs ended.
        let (order, orchestrator_shutdown) = watch::channel(false);
        let mut running =
            orchestrator::start(&data_dir, settings, orchestrator_shutdown, print_banner).await?;
        let settings = node::Settings {
            orchestrator: format!("http://{}", running.control),
            orchestrator_timeout: DEFAULT_ORCHESTRATOR_TIMEOUT,
            psk: running.psk(),
            slug: identity.slug.unwrap_or_else(default_slug),
            name: identity.name,
            labels: identity.label,
            worker_listen,
            advertise_url: None,
            inference,
            sandbox,
            ephemeral: true,
        };
        let outcome = match node::start(&data_dir, settings, shutdown.clone(), || ()).await {
            Err(NodeError::Stopped) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(mut node) => {
                let outcome = on_ready(shutdown, &mut running, &mut node).await;
                // Also after a failure: nothing of `dev` is to be left.
                node.close(grace).await;
                running.wait_idle(JOB_ENDS_TIMEOUT).await;
                outcome
            }
        };
        order.send_replace(true);
        running.wait_stopped().await;
        outcome
    })
}

/// Logs the admin in, and says so; then waits for the order to end.
async fn on_ready(
    shutdown: Shutdown,
    running: &mut orchestrator::RunningOrchestrator,
    node: &mut node::RunningNode,
) -> Result<(), Failure> {
    let gateway = format!("http://{}", running.gateway);
    let tokens = running.admin_session().await?;
    client::credentials::store(&gateway, "admin", tokens)?;
    print_stdout(&format!(
        "You are logged in as admin at {gateway}. In another terminal:\n\n  cynode run -- echo hello\n\n"
    ))?;
    systemd::notify_ready("takes tasks");
    tokio::select! {
        outcome = wait_for_shutdown(shutdown, running) => outcome,
        () = node.wait_for_failure() => Err(component_failed("the node")),
    }
}

/// Waits for the order to end. All parts end on that order too, so it is looked at first.
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
        "a part of {role} ended by itself; the log above says why; start it again"
    ))
}

/// Tells the operator what only this start knows.
fn print_banner(banner: &orchestrator::Banner) -> io::Result<()> {
    print_stdout(&banner.to_string())
}

/// What a person is to read, on stdout and never through the logger.
fn print_stdout(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
}
