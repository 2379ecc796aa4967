//! Files and stdin of a job, placed by its worker before a shim is started.

use super::{
    context::WorkerContext,
    disk_guard::LiveJob,
    placement::{self, Control, Limits, PlaceError},
    prepare::{PrepareError, engine_error, report_progress},
};
use crate::{
    api::jobs::{JobErrorKind, SandboxSpec, files::JobFile},
    data_dir::make_private_subdir,
    files::{PRIVATE_MODE, copy_part},
    wait,
};
use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{task::spawn_blocking, time::sleep};

/// Time after which a job says that its files are being placed.
const NOTICE_DELAY: Duration = Duration::from_secs(2);

impl From<PlaceError> for PrepareError {
    fn from(error: PlaceError) -> Self {
        let kind = match error {
            PlaceError::Canceled => return Self::Canceled,
            PlaceError::Invalid(_) => JobErrorKind::FilesInvalid,
            PlaceError::NoSpace(_) => JobErrorKind::OutOfDisk,
            PlaceError::TooLarge(_) => JobErrorKind::WorkspaceLimit,
            PlaceError::Failed(_) => JobErrorKind::EngineError,
        };
        Self::Failed(kind, error.to_string())
    }
}

/// Places files and stdin of a job. Where that fails or is canceled, nothing of them is left when this returns: the
/// result may need their room.
pub(super) async fn place_files(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
) -> Result<(), PrepareError> {
    let placed = try_place(ctx, live, spec).await;
    if placed.is_err() {
        let workspace = live.job.spool.workspace();
        if let Err(error) = ctx.engine.remove_tree(ctx.init.path(), &workspace).await {
            tracing::warn!(error, "workspace can't be removed; retrying");
            ctx.trash.add(workspace, Some(live));
        }
    }
    placed
}

async fn try_place(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
) -> Result<(), PrepareError> {
    if spec.files.is_empty() && spec.stdin.is_none() {
        return Ok(());
    }
    let Ok(_turn) = ctx.placements.acquire().await else {
        return Err(engine_error("files can't be placed: the worker is ending"));
    };
    let (job, control) = (&live.job, Arc::new(Control::default()));
    let placing = {
        let (live, control, spec) = (Arc::clone(live), Arc::clone(&control), spec.clone());
        let contents = ctx.contents.clone();
        let limits = Limits {
            workspace_bytes: ctx.workspace_limit.unwrap_or(u64::MAX),
            min_free: ctx.disk.min_free,
        };
        spawn_blocking(move || {
            let spool = &live.job.spool;
            let failed = |error: io::Error| {
                PlaceError::Failed(format!("the job's files can't be placed: {error}"))
            };
            make_private_subdir(&spool.workspace()).map_err(failed)?;
            let open = |file: &JobFile| contents.open_content(&file.content);
            placement::place(&spool.workspace(), &spec.files, open, &limits, &control)?;
            if let Some(stdin) = &spec.stdin {
                let content = contents.open_content(stdin).map_err(failed)?;
                copy_stdin(&content, &spool.stdin()).map_err(failed)?;
            }
            Ok(())
        })
    };
    let stop = async {
        let (mut cancel, mut excess) = (job.cancellation(), job.excess.subscribe());
        let is_stopped = tokio::select! {
            canceled = wait::until(&mut cancel, Option::is_some) => canceled.is_ok(),
            excess = wait::until(&mut excess, Option::is_some) => excess.is_ok(),
        };
        if is_stopped {
            control.is_canceled.store(true, Ordering::Relaxed);
        }
        std::future::pending::<()>().await;
    };
    let notice = async {
        sleep(NOTICE_DELAY).await;
        report_progress(ctx, job, "placing files".to_owned()).await;
        std::future::pending::<()>().await;
    };
    let placed = tokio::select! {
        placed = placing => placed,
        () = stop => return Err(PrepareError::Canceled),
        () = notice => return Err(PrepareError::Canceled),
    };
    let placed = placed.map_err(engine_error)?;
    if matches!(placed, Err(PlaceError::Canceled)) && job.excess.borrow().is_some() {
        let reason = "the node's disk was nearly full while the job's files were placed; send less, or run the job on a node with more room";
        return Err(PlaceError::NoSpace(reason.to_owned()).into());
    }
    Ok(placed?)
}

/// Copies the content of stdin: the job gets it through a pipe, and the cache must not depend on that.
fn copy_stdin(content: &File, path: &std::path::Path) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE_MODE)
        .open(path)?;
    while copy_part(content, &file, u64::from(u32::MAX))? > 0 {}
    Ok(())
}
