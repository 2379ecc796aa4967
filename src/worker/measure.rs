//! Measurement of what a job has on disk, for the guards.

use super::{context::WorkerContext, ledger::Job};
use crate::engine::SandboxUsage;
use std::{sync::Arc, time::Duration};
use tokio::task::spawn_blocking;

/// Disk usage of a job's sandbox; `None` where it can't be measured now, which is logged. Of a job that is ending only
/// what goes with its sandbox counts: its artifacts and its log stay.
pub(super) async fn measure(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    walk_timeout: Duration,
) -> Option<SandboxUsage> {
    let held = Arc::clone(job);
    let container = spawn_blocking(move || held.spool.container_name()).await;
    let container = container.ok().flatten();
    let init = ctx.init.path();
    let workspace = job.is_ending().then(|| job.spool.workspace());
    let files = workspace.as_deref().unwrap_or(job.spool.path());
    let measured = ctx
        .engine
        .measure(init, files, container.as_deref(), walk_timeout);
    let log =
        |error: &_| tracing::warn!(job = %job.accepted.job_id, %error, "sandbox not measured");
    measured.await.inspect_err(log).ok()
}
