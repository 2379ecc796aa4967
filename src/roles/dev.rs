//! `cynode dev`: orchestrator and node in one process, which talk over loopback as they would over a network.

use super::{
    DEFAULT_ORCHESTRATOR_TIMEOUT, component_failed, notices, print_banner, print_stdout,
    process::run_role,
    settings::{
        default_slug, inference_settings, open_data_dir, orchestrator_settings, sandbox_settings,
        shutdown_grace,
    },
    systemd, wait_for_shutdown,
};
use crate::{
    api::nodes::{Connect, InferenceMode},
    cli::DevArgs,
    client,
    exit::Failure,
    http::server::Shutdown,
    node::{self, NodeError},
    orchestrator::{self, ModelSettings, RequireInference},
    tls::Trust,
};
use std::time::Duration;
use tokio::sync::watch;

/// Time limit for storing the ends of canceled jobs at shutdown.
const JOB_ENDS_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs `cynode dev`.
pub fn dev(args: DevArgs) -> Result<(), Failure> {
    let notices = notices("dev", Some(&args.psk))?;
    let data_dir = open_data_dir(&args.state)?;
    let has_image = args.flags.inference_image.is_some();
    let inference = inference_settings(&args.inference, default_mode(has_image));
    let settings = orchestrator::Settings {
        control_listen: args.control_listen,
        require_inference: match inference.mode {
            InferenceMode::On => RequireInference::True,
            InferenceMode::Auto => RequireInference::Auto,
            InferenceMode::Off => RequireInference::False,
        },
        has_node: true,
        models: ModelSettings {
            concurrency: args.queue.inference_concurrency,
            queue: args.queue.inference_queue,
            ..ModelSettings::default()
        },
        ..orchestrator_settings(args.flags, &args.psk)?
    };
    let sandbox = sandbox_settings(&args.engine)?;
    let grace = shutdown_grace(&args.engine);
    let (identity, worker_listen) = (args.identity, args.worker_listen);
    // SIGHUP reloads nothing: the node and the login know the key of the start.
    run_role(&args.log, &notices, async |shutdown| {
        // The orchestrator ends after the node, so that it still receives the ends of the node's jobs.
        let (stop_orchestrator, orchestrator_shutdown) = watch::channel(false);
        let mut running =
            orchestrator::start(&data_dir, settings, orchestrator_shutdown, print_banner).await?;
        let (orchestrator, pin) = running.control_url();
        let settings = node::Settings {
            orchestrator,
            orchestrator_timeout: DEFAULT_ORCHESTRATOR_TIMEOUT,
            pin,
            token_pin: None,
            ca_file: None,
            psk: running.psk(),
            is_join_token: false,
            slug: identity.slug.unwrap_or_else(default_slug),
            name: identity.name,
            labels: identity.label,
            // On loopback, which needs no tunnel.
            connect: Connect::Listen,
            worker_listen: Some(worker_listen),
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
                // Also after a failure: `dev` leaves nothing behind.
                node.close(grace).await;
                running.wait_idle(JOB_ENDS_TIMEOUT).await;
                outcome
            }
        };
        stop_orchestrator.send_replace(true);
        running.wait_stopped().await;
        outcome
    })
}

/// Mode of the model server where none is given: one is started only where an image of it is named.
const fn default_mode(has_image: bool) -> InferenceMode {
    if has_image {
        InferenceMode::Auto
    } else {
        InferenceMode::Off
    }
}

/// Logs the admin in and prints how to go on; then waits for the shutdown.
async fn on_ready(
    shutdown: Shutdown,
    running: &mut orchestrator::RunningOrchestrator,
    node: &mut node::RunningNode,
) -> Result<(), Failure> {
    let (gateway, pin) = running.gateway_url();
    let tokens = running.admin_session().await?;
    client::credentials::store(&gateway, "admin", tokens, &Trust::new(pin, None))?;
    print_stdout(&format!(
        "You are logged in as admin at {gateway}. In another terminal:\n\n  cynode run -- echo hello\n\n"
    ))?;
    systemd::notify_ready("takes tasks");
    tokio::select! {
        outcome = wait_for_shutdown(shutdown, running) => outcome,
        () = node.wait_for_failure() => Err(component_failed("the node")),
    }
}
