//! `cynode doctor`: what on this host would keep a role from working, and the mend.
//!
//! Each check looks, decides and says one [`Check`]; the deciding is pure and tested by itself.
//! Doctor takes no role's lock, leaves neither file nor container behind, and changes nothing
//! unless told to by `--fix` ([`fix`] is all that it may then do). The checks run at the same
//! time where they don't need each other, and are told in an order in which a person would mend
//! them: a later one often fails because of an earlier one.

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
    cli::DoctorArgs,
    exit::{Exit, Failure},
    roles::{
        self,
        node_file::{DEFAULT_PATH, NodeFile},
    },
};
use serde::Serialize;
use std::path::Path;

/// What a check came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// Nothing to do.
    Ok,
    /// Roles work, but less well than they could, or not all of them.
    Warn,
    /// A role doesn't work like this.
    Fail,
}

/// One thing that was looked at. Whatever isn't ok has a mend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    fixed: bool,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            mend: None,
            fixed: false,
        }
    }

    fn bad(
        name: &'static str,
        status: Status,
        detail: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            status,
            mend: Some(mend.into()),
            ..Self::ok(name, detail)
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(name, Status::Warn, detail, mend)
    }

    fn fail(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(name, Status::Fail, detail, mend)
    }

    /// The same, mended just now.
    fn fixed(self) -> Self {
        Self {
            fixed: true,
            ..self
        }
    }
}

/// `cynode doctor`.
pub fn doctor(mut args: DoctorArgs) -> Result<(), Failure> {
    let config = config(&mut args);
    let data_dir = std::path::absolute(roles::data_dir_path(&args.state)?)?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::internal)?;
    let mut checks = runtime.block_on(async {
        // Dropped in the middle, the examination still removes its files.
        tokio::select! {
            checks = examine(&args, &data_dir) => Ok(checks),
            stopped = stopped() => Err(stopped),
        }
    })?;
    checks.insert(0, config);
    report::show(&checks, args.output)?;
    if checks.iter().any(|check| check.status == Status::Fail) {
        return Err(Failure::silent(1));
    }
    Ok(())
}

/// Reads what a node on this machine would read, and says what is wrong with it.
fn config(args: &mut DoctorArgs) -> Check {
    const NAME: &str = "config";
    let found = NodeFile::load(args.config.as_deref()).and_then(|file| {
        let Some(file) = file else { return Ok(false) };
        file.apply_to_doctor(args);
        // All of it: what a node would find out only at its start.
        roles::check_node(args).map(|()| true)
    });
    match found {
        Ok(true) => {
            let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
            Check::ok(NAME, format!("a node takes {}", path.display()))
        }
        Ok(false) => Check::ok(NAME, format!("no {DEFAULT_PATH}; flags alone count")),
        Err(failure) => Check::fail(
            NAME,
            failure.message,
            "correct what is named above; packaging/node.yaml of cynode's repository shows every key",
        ),
    }
}

/// All checks, in the order in which they are told.
async fn examine(args: &DoctorArgs, data_dir: &Path) -> Vec<Check> {
    // First: the container of a later check is tried below it.
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
        orchestrator::checks(args.orchestrator.as_deref()),
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
async fn stopped() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
    let [Ok(mut terminate), Ok(mut interrupt)] = kinds.map(signal) else {
        return Failure::new(
            Exit::Internal,
            "signals can't be caught; see how many processes this user may have with: ulimit -a",
        );
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Failure::new(
        Exit::Code(130),
        "stopped before the end; nothing is left behind",
    )
}
