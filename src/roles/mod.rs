//! From raw arguments to the settings of a role, and the life of its process: logging,
//! signals, start, end.

mod failures;
mod settings;

pub(crate) use settings::data_dir_path;
pub use settings::secret;

use crate::{
    cli::{Common, Dev, LogFormat, NodeArgs, SandboxFlags, ServeOrchestrator, WorkerArgs},
    client,
    exit::Failure,
    http::server::{Shutdown, ended},
    node::{self, InferenceMode, NodeError},
    orchestrator::{self, Orchestrator},
    worker::{self, Bench, Policy},
};
use settings::{
    admin_password, checked_url, host_slug, image, open_data_dir, psk, sandbox_settings,
    worker_urls,
};
use std::{
    collections::HashMap,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};
use tokio::sync::watch;

/// How long `dev` waits for the ends of canceled jobs to be stored.
const SETTLE: Duration = Duration::from_secs(5);

/// Logs go to stderr; stdout belongs to results.
fn start_logging(common: &Common) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(&common.log_level).map_err(|error| {
        Failure::usage(format!(
            "--log-level: {error}; use error, warn, info, debug or trace"
        ))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    match common.log_format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder
                .with_ansi(io::stderr().is_terminal() && !plain)
                .init();
        }
    }
    Ok(())
}

/// Runs a role to its end on a runtime of its own; files that it makes are for nobody else.
fn run(
    common: &Common,
    role: impl AsyncFnOnce(Shutdown) -> Result<(), Failure>,
) -> Result<(), Failure> {
    start_logging(common)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::internal)?;
    runtime.block_on(async {
        let (order, shutdown) = watch::channel(false);
        tokio::spawn(end_on_signal(order));
        role(shutdown).await
    })
}

/// The first signal orders an orderly end, the second ends the process at once.
async fn end_on_signal(order: watch::Sender<bool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
    let [Ok(mut terminate), Ok(mut interrupt)] = kinds.map(signal) else {
        tracing::error!("signals can't be caught; the process will end at once on any");
        return;
    };
    // Under nohup the end of the terminal is to be ignored, as it was when we were started.
    let mut hangup = (!hangup_is_ignored())
        .then(|| signal(SignalKind::hangup()).ok())
        .flatten();
    let mut signals = 0;
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = heard(&mut hangup), if hangup.is_some() && signals == 0 => {
                // It often comes twice, from the shell and from the kernel, which is no impatience.
                hangup = None;
            }
        }
        signals += 1;
        if signals > 1 {
            std::process::exit(130);
        }
        tracing::info!("shutting down; a second signal ends at once");
        order.send_replace(true);
    }
}

async fn heard(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP, signal 1, is among the ignored ones of proc(5).
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

/// `cynode serve-orchestrator`.
pub fn serve_orchestrator(common: &Common, args: ServeOrchestrator) -> Result<(), Failure> {
    let data_dir = open_data_dir(&args.state)?;
    let settings = orchestrator::Settings {
        gateway_listen: args.flags.gateway_listen,
        control_listen: args.control_listen,
        public_url: args
            .public_url
            .map(|url| checked_url("--public-url", url))
            .transpose()?,
        psk: psk(&args.psk)?,
        admin_password: admin_password(args.flags.admin_password_file.as_deref())?,
        worker_urls: worker_urls(&args.worker_url)?,
        default_image: image("--default-image", &args.flags.default_image)?,
        inference_image: args
            .inference_image
            .map(|text| image("--inference-image", &text))
            .transpose()?,
        require_inference: args.require_inference,
    };
    run(common, async |shutdown| {
        let mut running =
            Orchestrator::start(&data_dir, settings, shutdown.clone(), announce).await?;
        until_shutdown(shutdown, &mut running).await?;
        running.ended().await;
        Ok(())
    })
}

/// `cynode node`.
pub fn node(common: &Common, args: NodeArgs) -> Result<(), Failure> {
    let data_dir = open_data_dir(&args.state)?;
    let grace = args.sandbox.engine.shutdown_grace;
    let psk = psk(&args.psk)?.ok_or_else(|| {
        Failure::usage(
            "the node needs the pre-shared key: --psk-file FILE, --psk KEY or CYNODE_PSK",
        )
    })?;
    let settings = node::Settings {
        orchestrator: args.orchestrator,
        psk,
        slug: args.identity.slug.unwrap_or_else(host_slug),
        name: args.identity.name,
        labels: args.identity.label,
        worker_listen: args.sandbox.worker_listen,
        advertise_url: args.advertise_url,
        inference: args.identity.inference.unwrap_or(InferenceMode::Auto),
        sandbox: sandbox_settings(&args.sandbox.engine, args.sandbox.default_image.as_deref())?,
    };
    run(common, async |shutdown| {
        let running = match node::start(&data_dir, settings, shutdown.clone()).await {
            Err(NodeError::Stopped) => return Ok(()),
            started => started?,
        };
        ended(shutdown).await;
        running.close(grace, false).await;
        Ok(())
    })
}

/// `cynode worker`.
pub fn worker(common: &Common, args: WorkerArgs) -> Result<(), Failure> {
    let data_dir = open_data_dir(&args.state)?;
    let token = secret("--token-file", args.token_file.as_deref(), "CYNODE_WORKER_TOKEN")?.ok_or_else(|| {
        Failure::usage("the worker needs the token that callers must show: --token-file FILE or CYNODE_WORKER_TOKEN")
    })?;
    let SandboxFlags {
        worker_listen,
        engine,
        default_image,
    } = args.sandbox;
    let settings = sandbox_settings(&engine, default_image.as_deref())?;
    run(common, async |shutdown| {
        let bench = Bench::prepare(&data_dir, settings).await?;
        data_dir.update_addresses(|addresses| addresses.worker = None)?;
        let (socket, bound) = worker::reserve(worker_listen)?;
        let policy = Policy {
            allowed_images: Vec::new(),
            max_timeout_seconds: crate::api::jobs::MAX_TIMEOUT_SECONDS,
        };
        let worker = bench.open(socket.listen(1024)?, &token, policy);
        data_dir.update_addresses(|addresses| addresses.worker = Some(bound))?;
        tracing::info!(worker = %bound, "the worker listens");
        ended(shutdown).await;
        worker.close(engine.shutdown_grace, true).await;
        Ok(())
    })
}

/// `cynode dev`: the same roles, talking over loopback as they would over a network.
pub fn dev(common: &Common, args: Dev) -> Result<(), Failure> {
    let data_dir = open_data_dir(&args.state)?;
    let default_image = image("--default-image", &args.flags.default_image)?;
    let settings = orchestrator::Settings {
        gateway_listen: args.flags.gateway_listen,
        control_listen: args.control_listen,
        public_url: None,
        psk: psk(&args.psk)?,
        admin_password: admin_password(args.flags.admin_password_file.as_deref())?,
        worker_urls: HashMap::new(),
        default_image,
        inference_image: None,
        require_inference: false,
    };
    let sandbox = sandbox_settings(&args.engine, None)?;
    let Dev {
        identity,
        worker_listen,
        engine,
        ..
    } = args;
    run(common, async |shutdown| {
        // The orchestrator ends after the node, so that it still hears how the node's jobs ended.
        let (order, orchestrator_shutdown) = watch::channel(false);
        let mut running =
            Orchestrator::start(&data_dir, settings, orchestrator_shutdown, announce).await?;
        let settings = node::Settings {
            orchestrator: format!("http://{}", running.control),
            psk: running.psk(),
            slug: identity.slug.unwrap_or_else(host_slug),
            name: identity.name,
            labels: identity.label,
            worker_listen,
            advertise_url: None,
            inference: identity.inference.unwrap_or(InferenceMode::Off),
            sandbox,
        };
        let node = match node::start(&data_dir, settings, shutdown.clone()).await {
            Err(NodeError::Stopped) => None,
            started => Some(started?),
        };
        if let Some(node) = node {
            let gateway = format!("http://{}", running.gateway);
            let tokens = running.admin_session().await?;
            client::credentials::store(&gateway, "admin", tokens)?;
            show(&format!(
                "You are logged in as admin at {gateway}. In another terminal:\n\n  cynode run -- echo hello\n\n"
            ))?;
            until_shutdown(shutdown, &mut running).await?;
            node.close(engine.shutdown_grace, true).await;
            running.settled(SETTLE).await;
        }
        order.send_replace(true);
        running.ended().await;
        Ok(())
    })
}

/// Waits for the order to end. All parts end on that order too, so it is looked at first.
async fn until_shutdown(
    shutdown: Shutdown,
    running: &mut orchestrator::Running,
) -> Result<(), Failure> {
    tokio::select! {
        biased;
        () = ended(shutdown.clone()) => return Ok(()),
        () = running.broken() => {}
    }
    if *shutdown.borrow() {
        return Ok(());
    }
    Err(Failure::internal(
        "a part of the orchestrator ended by itself; the log above says why; start it again",
    ))
}

/// Tells the operator what only this start knows.
fn announce(welcome: &orchestrator::Welcome) -> io::Result<()> {
    show(&welcome.to_string())
}

/// What a person is to read, on stdout and never through the logger.
fn show(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
}
