//! Result of a job that has no shim, written by its worker.

use super::{artifacts, context::WorkerContext, ledger::Job};
use crate::{
    data_dir::make_private_subdir,
    spool::{JobEnd, JobRecorder, Spool},
};
use std::{io, sync::Arc};

/// Writes the result, with the artifacts of a command that has run.
pub(super) async fn write_result(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    end: JobEnd,
) -> io::Result<()> {
    let (accepted, log_bytes) = (job.accepted.clone(), ctx.log_bytes);
    // Reads all that the job has printed.
    let result = job.with_log(move |spool| {
        make_private_subdir(spool.path())?;
        let mut recorder = JobRecorder::open(spool, accepted, log_bytes)?;
        Ok::<_, io::Error>(recorder.take_result(end, None))
    });
    let mut result = result.await.flatten()?;
    artifacts::collect_into(&mut result, &ctx.engine, ctx.init.path(), &job.spool).await;
    job.spool.write_result_with_retry(result).await?;
    job.with_spool(Spool::sync).await.flatten()
}
