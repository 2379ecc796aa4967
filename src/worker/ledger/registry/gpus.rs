//! Graphics processors of the jobs in the registry. A job has its devices from its admission to its end.

use super::Registry;
use crate::{
    api::{jobs::resources::GpuRequest, problem::Problem},
    engine::gpus::PassedGpu,
    spool::AcceptedJob,
    worker::gpus::GpuRefusal,
};

impl Registry {
    /// Devices for a new job; none where this node can never give them, which its preparation explains. An
    /// attempt gets those of the one that it replaces, too, and waits for that one's end before it uses them.
    pub(super) fn allocate_gpus(
        &self,
        wanted: &AcceptedJob,
        request: &GpuRequest,
    ) -> Result<Vec<String>, Problem> {
        let others = self
            .gpu_holders()
            .filter(|holder| holder.job_id != wanted.job_id);
        let busy = others
            .flat_map(|holder| &holder.gpus)
            .map(String::as_str)
            .collect();
        match self
            .gpus
            .lock()
            .allocate(request, &busy)
            .map_err(GpuRefusal::into_problem)
        {
            Ok(gpus) => Ok(gpus),
            Err(Ok(problem)) => Err(problem),
            Err(Err(_)) => Ok(Vec::new()),
        }
    }

    /// Jobs that may have devices: all that have not ended, and those that are being accepted.
    fn gpu_holders(&self) -> impl Iterator<Item = &AcceptedJob> {
        let running = self.jobs.values().filter(|job| !job.has_ended());
        running.map(|job| &job.accepted).chain(self.accepting())
    }

    /// Devices that jobs can have, each with whether one has it now.
    pub(in crate::worker::ledger) fn gpus(&self) -> Vec<(PassedGpu, bool)> {
        let is_busy = |gpu: &PassedGpu| {
            self.gpu_holders()
                .any(|holder| holder.gpus.contains(&gpu.id))
        };
        let pool = self.gpus.lock();
        pool.available()
            .map(|gpu| (gpu.clone(), is_busy(gpu)))
            .collect()
    }
}
