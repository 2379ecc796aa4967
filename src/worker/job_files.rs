//! Files and stdin of a job, and those of the snapshot that it begins from, placed by its worker before a shim is
//! started.

use super::{
    context::WorkerContext,
    disk_guard::LiveJob,
    ledger::Job,
    placement::{self, Control, Limits, PlaceError},
    prepare::{PrepareError, engine_error, report_progress},
    snapshots::begin_restore,
};
use crate::{
    api::jobs::{JobErrorKind, SandboxSpec, files::JobFile},
    data_dir::make_private_subdir,
    engine::Copied,
    files::{PRIVATE_MODE, copy_part},
    spool::Spool,
    wait,
};
use std::{
    fs::{self, File},
    future::pending,
    io,
    os::unix::fs::OpenOptionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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

/// Places files and stdin of a job, after those of the snapshot that it begins from, which is named by its image's id.
/// Where that fails or is canceled, nothing of them is left when this returns: the result may need their room.
pub(super) async fn place_files(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
    snapshot: Option<&str>,
) -> Result<(), PrepareError> {
    let placed = try_place(ctx, live, spec, snapshot).await;
    if placed.is_err() {
        let workspace = live.job.spool.workspace();
        if let Err(error) = ctx.engine.remove_tree(ctx.init.path(), &workspace).await {
            tracing::warn!(error, "workspace can't be removed; retrying");
            ctx.trash.add(workspace, Some(live));
        }
        if let Err(error) = live.job.with_spool(Spool::remove_stdin).await.flatten() {
            tracing::warn!(%error, "stdin can't be removed; it goes with the job");
        }
    }
    placed
}

async fn try_place(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
    snapshot: Option<&str>,
) -> Result<(), PrepareError> {
    let has_files = !spec.files.is_empty() || spec.stdin.is_some();
    if !has_files && snapshot.is_none() {
        return Ok(());
    }
    let (job, has_turn) = (&live.job, AtomicBool::new(false));
    let placing = async {
        let turn = tokio::select! {
            turn = ctx.placements.acquire() => turn,
            () = stop_requested(job) => return Err(PlaceError::Canceled),
        };
        let Ok(_turn) = turn else {
            let reason = "files can't be placed: the worker is ending";
            return Err(PlaceError::Failed(reason.to_owned()));
        };
        has_turn.store(true, Ordering::Relaxed);
        let restored = match snapshot {
            Some(image_id) => restore(ctx, live, image_id).await?,
            None => Copied::default(),
        };
        if has_files {
            place_on_disk(ctx, live, spec, restored).await?;
        }
        Ok(())
    };
    let notice = async {
        sleep(NOTICE_DELAY).await;
        let text = if has_turn.load(Ordering::Relaxed) {
            "placing files"
        } else {
            "waiting to place files: those of other jobs come first"
        };
        report_progress(ctx, job, text.to_owned()).await;
        pending::<()>().await;
    };
    let placed = tokio::select! {
        placed = placing => placed,
        () = notice => Err(PlaceError::Canceled),
    };
    // A notice may be under way; whoever comes next has the log alone.
    job.with_log(|_| ()).await.map_err(engine_error)?;
    match placed {
        Err(PlaceError::Canceled) => Err(stopped(job)),
        placed => Ok(placed?),
    }
}

/// Places the workspace of a snapshot, and returns its size when that has ended: soon after a request to stop.
async fn restore(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    image_id: &str,
) -> Result<Copied, PlaceError> {
    let has_content = |spool: &Spool| match fs::read_dir(spool.workspace()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => io::Result::Ok(false),
        entries => Ok(entries?.next().is_some()),
    };
    let has_content = live.job.with_spool(has_content).await.flatten();
    if has_content.map_err(failed)? {
        // Of an earlier try. A process that still copies for it finds its directory gone.
        let workspace = live.job.spool.workspace();
        let removed = ctx.engine.remove_tree(ctx.init.path(), &workspace).await;
        removed.map_err(|error| failed(io::Error::other(error)))?;
    }
    let made = |spool: &Spool| make_private_subdir(&spool.workspace());
    let made = live.job.with_spool(made).await.flatten();
    made.map_err(failed)?;
    let mut restoring = begin_restore(ctx, image_id, live.job.spool.workspace())?;
    tokio::select! {
        restored = &mut restoring => restored,
        () = stop_requested(&live.job) => {
            // Blocks until the process that copies has ended.
            let ended = spawn_blocking(move || drop(restoring)).await;
            ended.map_err(|error| failed(error.into()))?;
            Err(PlaceError::Canceled)
        }
    }
}

/// Places files beside those that were restored, on a thread that may block, and returns when it has ended: soon after a
/// request to stop.
async fn place_on_disk(
    ctx: &WorkerContext,
    live: &Arc<LiveJob>,
    spec: &SandboxSpec,
    restored: Copied,
) -> Result<(), PlaceError> {
    let control = Arc::new(Control::default());
    let placing = {
        let (live, control, spec) = (Arc::clone(live), Arc::clone(&control), spec.clone());
        let contents = ctx.contents.clone();
        let limits = Limits {
            workspace_bytes: bytes_left(ctx.workspace_limit, restored),
            min_free: ctx.disk.min_free,
        };
        spawn_blocking(move || {
            let spool = &live.job.spool;
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
        stop_requested(&live.job).await;
        control.is_canceled.store(true, Ordering::Relaxed);
        pending::<()>().await;
    };
    tokio::select! {
        placed = placing => placed.map_err(|error| failed(error.into()))?,
        () = stop => Err(PlaceError::Canceled),
    }
}

/// Bytes that a workspace may get besides the files that were restored.
fn bytes_left(limit: Option<u64>, restored: Copied) -> u64 {
    limit.map_or(u64::MAX, |limit| limit.saturating_sub(restored.bytes))
}

fn failed(error: io::Error) -> PlaceError {
    PlaceError::Failed(format!("the job's files can't be placed: {error}"))
}

/// Waits for a reason to stop the job.
async fn stop_requested(job: &Job) {
    let (mut cancel, mut excess) = (job.cancellation(), job.excess.subscribe());
    let is_requested = tokio::select! {
        canceled = wait::until(&mut cancel, Option::is_some) => canceled.is_ok(),
        excess = wait::until(&mut excess, Option::is_some) => excess.is_ok(),
    };
    if !is_requested {
        // The senders are gone with the job.
        pending::<()>().await;
    }
}

/// Reason for which the job was stopped.
fn stopped(job: &Job) -> PrepareError {
    let excess = *job.excess.borrow();
    match excess {
        Some(reason) if job.cancellation().borrow().is_none() => PrepareError::Stopped(reason),
        _ => PrepareError::Canceled,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restored_files_share_limit_of_workspace() {
        let restored = Copied {
            bytes: 60,
            entries: 1,
        };
        assert_eq!(bytes_left(Some(100), Copied::default()), 100);
        assert_eq!(bytes_left(Some(100), restored), 40);
        assert_eq!(bytes_left(Some(50), restored), 0);
        assert_eq!(bytes_left(None, restored), u64::MAX);
    }
}
