//! `cynode doctor`: checks this machine and shows how to fix what is wrong.
//!
//! Each check inspects one thing and returns a [`Check`]; its decision is pure and has tests of its own. Doctor takes no
//! lock of a role, leaves neither file nor container behind, and changes nothing without `--fix` ([`fix`] is all that it
//! may change then). Independent checks run at the same time. They are shown in the order in which to fix them: a later
//! one often fails because of an earlier one.

mod certificate;
mod engine;
mod fix;
mod gpu;
mod host;
mod model_server;
mod orchestrator;
mod ports;
mod report;
mod rootless;
mod scratch;

use crate::{
    api::nodes::JoinToken,
    cli::DoctorArgs,
    exit::{Exit, Failure},
    node,
    roles::{
        self,
        node_file::{DEFAULT_PATH, NodeFile},
    },
    tls::Pin,
};
use serde::Serialize;
use std::path::Path;

/// Result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// Nothing to do.
    Ok,
    /// Roles work with limits, or not all of them work.
    Warn,
    /// A role can't work.
    Fail,
}

/// One check and its result. Every result but `ok` has a fix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    fixed: bool,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            fix: None,
            fixed: false,
        }
    }

    fn bad(
        name: &'static str,
        status: Status,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            status,
            fix: Some(fix.into()),
            ..Self::ok(name, detail)
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::bad(name, Status::Warn, detail, fix)
    }

    fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::bad(name, Status::Fail, detail, fix)
    }

    /// Same result, after a fix just now.
    fn fixed(self) -> Self {
        Self {
            fixed: true,
            ..self
        }
    }
}

/// `cynode doctor`.
pub fn doctor(mut args: DoctorArgs) -> Result<(), Failure> {
    let (config, token_pin) = config(&mut args);
    let data_dir = std::path::absolute(roles::data_dir_path(&args.state)?)?;
    // As a node that starts here would.
    if args.trust.pin.is_none()
        && args.trust.ca_file.is_none()
        && let Some(url) = &args.orchestrator
    {
        args.trust.pin = node::default_pin(&data_dir, url, token_pin);
    }
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::internal)?;
    let mut checks = runtime.block_on(async {
        // Removes its files also where it is dropped midway.
        tokio::select! {
            checks = run_checks(&args, &data_dir) => Ok(checks),
            interrupted = interrupted() => Err(interrupted),
        }
    })?;
    checks.insert(0, config);
    report::show(&checks, args.output)?;
    if checks.iter().any(|check| check.status == Status::Fail) {
        return Err(Failure::silent(1));
    }
    Ok(())
}

/// Fills the arguments from the settings of a node on this machine: `node.yaml`, and a join token among the variables.
/// Returns whether there is a file, and the token whose URL counts.
fn fill_args(args: &mut DoctorArgs) -> Result<(bool, Option<JoinToken>), Failure> {
    let file = NodeFile::load(args.config.as_deref())?;
    let mut token = None;
    // A URL that is given to doctor is the one that is meant.
    if args.orchestrator.is_none() {
        token = roles::join_token_of_variables()?;
        args.orchestrator = token.as_ref().map(|token| token.url.clone());
    }
    let has_file = file.is_some();
    let of_file = file.and_then(|file| file.apply_to_doctor(args));
    Ok((has_file, token.or(of_file)))
}

/// Checks the settings that a node on this machine would read. Returns the pin of its join token, too.
fn config(args: &mut DoctorArgs) -> (Check, Option<Pin>) {
    let filled = fill_args(args);
    let (has_file, token) = match filled {
        Ok(filled) => filled,
        Err(failure) => return (settings_check(Err(failure), args), None),
    };
    // All settings, also those that doctor doesn't need: a node would refuse them at its start.
    let checked = roles::check_node(args).map(|notices| (has_file, notices));
    let pin = token.and_then(|token| token.pin);
    (settings_check(checked, args), pin)
}

/// Check of the settings: whether there is a file, and its notices.
fn settings_check(found: Result<(bool, Vec<String>), Failure>, args: &DoctorArgs) -> Check {
    const NAME: &str = "config";
    match found {
        Ok((_, notices)) if !notices.is_empty() => Check::warn(
            NAME,
            notices.join("\n"),
            "use the new names; the next release refuses or ignores the old ones",
        ),
        Ok((true, _)) => {
            let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
            Check::ok(NAME, format!("nodes read {}", path.display()))
        }
        Ok((false, _)) => Check::ok(
            NAME,
            format!("no {DEFAULT_PATH}; only flags and variables apply"),
        ),
        Err(failure) => Check::fail(
            NAME,
            failure.message,
            "correct the setting that is named above; packaging/node.yaml in cynode's repository documents every key",
        ),
    }
}

/// Runs all checks; in the order in which they are shown.
async fn run_checks(args: &DoctorArgs, data_dir: &Path) -> Vec<Check> {
    // First: a later check runs a container in it.
    let directory = if args.fix {
        fix::data_dir(data_dir)
    } else {
        host::data_dir(data_dir)
    };
    let scratch = scratch::Scratch::make(data_dir);
    let containers = async {
        let podman = engine::inspect(&args.podman, scratch.as_ref()).await;
        let gpu = gpu::check(&podman, scratch.as_ref().ok(), args.fix).await;
        (podman, gpu)
    };
    let ((podman, gpu), mut ports, [orchestrator, clock]) = tokio::join!(
        containers,
        ports::checks(args),
        orchestrator::checks(args.orchestrator.as_deref(), &args.trust),
    );
    if let (Some(port), [.., inference]) = (ports::model_server(args), &mut ports) {
        *inference = model_server::check_owner(inference.clone(), port, &podman, data_dir).await;
    }
    let [rootless, linger] = rootless::checks(podman.rootless());
    let mut checks = vec![
        podman.version_check(),
        rootless,
        linger,
        podman.sandbox_check(),
        podman.cgroups_check(),
        host::disk(podman.graph_root(), data_dir, &args.storage),
        directory,
        orchestrator::database(data_dir),
    ];
    checks.extend(ports);
    checks.extend([orchestrator, clock, gpu]);
    checks
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupted() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
    let [Ok(mut terminate), Ok(mut interrupt)] = kinds.map(signal) else {
        return Failure::new(
            Exit::Internal,
            "signals can't be caught; check this user's limits with: ulimit -a",
        );
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Failure::new(Exit::Code(130), "interrupted; nothing was left behind")
}
