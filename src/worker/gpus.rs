//! Graphics processors of a worker: which of them a job gets, so that no two jobs have one at the same time.
//!
//! The choice is pure. Who has a device stands in the [ledger](super::ledger), which asks here under its lock, and in
//! each job's spool, so that it survives this process.

use crate::{
    api::{
        jobs::resources::GpuRequest,
        problem::{Problem, ProblemKind},
    },
    engine::gpus::PassedGpu,
};
use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

/// Delay after which a job is to be sent again for which too few devices are free.
const GPUS_BUSY_RETRY_SECONDS: u64 = 5;

/// Graphics processors that jobs can have, in the order in which they are given out.
#[derive(Clone, Debug, Default)]
pub(super) struct GpuPool {
    gpus: Vec<PassedGpu>,
    /// Vendor whose devices are the model server's alone.
    reserved: Option<&'static str>,
}

/// The devices of a worker, which its ledger and its jobs share. Held for moments only.
pub(super) type SharedGpus = Arc<Mutex<GpuPool>>;

/// Reason for which a job gets no devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum GpuRefusal {
    /// Others have them now.
    Busy(String),
    /// This node can never give them.
    Unavailable(String),
}

impl GpuPool {
    pub(super) fn new(gpus: Vec<PassedGpu>) -> Self {
        Self {
            gpus,
            reserved: None,
        }
    }

    /// Keeps the devices of this vendor for the model server.
    pub(super) fn set_reserved(&mut self, vendor: Option<&'static str>) {
        self.reserved = vendor;
    }

    /// Devices that jobs can have now or later.
    pub(super) fn available(&self) -> impl Iterator<Item = &PassedGpu> {
        let is_reserved = |gpu: &&PassedGpu| Some(gpu.vendor) == self.reserved;
        self.gpus.iter().filter(move |gpu| !is_reserved(gpu))
    }

    /// Ids of the devices that a job gets while others have those in `busy`.
    pub(super) fn allocate(
        &self,
        request: &GpuRequest,
        busy: &HashSet<&str>,
    ) -> Result<Vec<String>, GpuRefusal> {
        let total = self.available().count();
        let free: Vec<&PassedGpu> = self
            .available()
            .filter(|gpu| !busy.contains(gpu.id.as_str()))
            .collect();
        let chosen: Vec<&PassedGpu> = match request {
            GpuRequest::All if total > 0 && free.len() == total => free,
            GpuRequest::Count(count) if *count as usize <= free.len() => {
                free.into_iter().take(*count as usize).collect()
            }
            GpuRequest::All if total > 0 => return Err(too_few(total, free.len(), total)),
            GpuRequest::Count(count) if *count as usize <= total => {
                return Err(too_few(*count as usize, free.len(), total));
            }
            GpuRequest::All => return Err(self.unavailable("all GPUs")),
            GpuRequest::Count(count) => return Err(self.unavailable(&format!("{count} GPUs"))),
            GpuRequest::Ids(ids) => self.by_ids(ids)?,
        };
        let taken = chosen
            .iter()
            .filter(|gpu| busy.contains(gpu.id.as_str()))
            .count();
        if taken > 0 {
            let text = format!(
                "{taken} of the GPUs that the job names are in use by other jobs; send it again when they have ended"
            );
            return Err(GpuRefusal::Busy(text));
        }
        Ok(chosen.into_iter().map(|gpu| gpu.id.clone()).collect())
    }

    fn by_ids(&self, ids: &[String]) -> Result<Vec<&PassedGpu>, GpuRefusal> {
        let mut chosen: Vec<&PassedGpu> = Vec::new();
        for id in ids {
            let Some(gpu) = self.available().find(|gpu| gpu.is_called(id)) else {
                return Err(self.unavailable(&format!("the GPU {id}")));
            };
            if chosen.iter().any(|other| other.id == gpu.id) {
                return Err(GpuRefusal::Unavailable(format!(
                    "the job names the GPU {} twice, by two of its ids; name it once",
                    gpu.id
                )));
            }
            chosen.push(gpu);
        }
        Ok(chosen)
    }

    fn unavailable(&self, wanted: &str) -> GpuRefusal {
        let ids: Vec<&str> = self.available().map(|gpu| gpu.id.as_str()).collect();
        let has = match (ids.len(), self.reserved) {
            (0, Some(_)) => {
                "keeps its GPUs for the model server (--gpu-share exclusive)".to_owned()
            }
            (0, None) => "has none that it can give to jobs; see: cynode doctor".to_owned(),
            (count, _) => format!("has {count} for jobs: {}", ids.join(", ")),
        };
        GpuRefusal::Unavailable(format!(
            "the job asks for {wanted}, and this node {has}; ask for others, or run the task on another node"
        ))
    }

    /// Devices of a job that has those of these ids, or the reason for which it has not what it asks for.
    pub(super) fn of_job(
        &self,
        ids: &[String],
        request: Option<&GpuRequest>,
    ) -> Result<Vec<PassedGpu>, String> {
        let Some(request) = request else {
            return Ok(Vec::new());
        };
        let is_named = |gpu: &&PassedGpu| ids.contains(&gpu.id);
        let gpus: Vec<PassedGpu> = self.gpus.iter().filter(is_named).cloned().collect();
        if !gpus.is_empty() && gpus.len() == ids.len() {
            return Ok(gpus);
        }
        match self.allocate(request, &HashSet::new()) {
            Err(GpuRefusal::Unavailable(reason) | GpuRefusal::Busy(reason)) => Err(reason),
            // There were others when the job was accepted.
            Ok(_) => Err("the GPUs of this node have changed since it accepted the job".to_owned()),
        }
    }
}

fn too_few(wanted: usize, free: usize, total: usize) -> GpuRefusal {
    GpuRefusal::Busy(format!(
        "the job asks for {wanted} GPUs, and {free} of the {total} of this worker are free; send it again when a job has ended"
    ))
}

impl GpuRefusal {
    /// Answer to a job that may be sent again; the text of a refusal for good otherwise.
    pub(super) fn into_problem(self) -> Result<Problem, String> {
        match self {
            Self::Busy(detail) => Ok(
                Problem::new(ProblemKind::GpusBusy, detail).retry_after(GPUS_BUSY_RETRY_SECONDS)
            ),
            Self::Unavailable(detail) => Err(detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(count: usize) -> GpuPool {
        let gpu = |n: usize| PassedGpu {
            id: n.to_string(),
            uuid: Some(format!("GPU-{n}")),
            vendor: "nvidia",
            device: n,
            args: Vec::new(),
        };
        GpuPool::new((0..count).map(gpu).collect())
    }

    fn ids(list: &[&str]) -> GpuRequest {
        GpuRequest::Ids(list.iter().map(|&id| id.to_owned()).collect())
    }

    #[test]
    fn devices_are_given_by_count_and_id() {
        let pool = pool(3);
        let allocate = |request: &GpuRequest, busy: &[&str]| {
            pool.allocate(request, &busy.iter().copied().collect())
        };
        assert_eq!(allocate(&GpuRequest::Count(2), &["0"]).unwrap(), ["1", "2"]);
        assert_eq!(allocate(&GpuRequest::All, &[]).unwrap(), ["0", "1", "2"]);
        assert_eq!(allocate(&ids(&["2", "GPU-0"]), &["1"]).unwrap(), ["2", "0"]);
        for (request, busy) in [
            (GpuRequest::All, "1"),
            (GpuRequest::Count(3), "1"),
            (ids(&["1"]), "1"),
        ] {
            let refused = allocate(&request, &[busy]);
            assert!(matches!(refused, Err(GpuRefusal::Busy(_))), "{refused:?}");
        }
        for request in [GpuRequest::Count(4), ids(&["3"]), ids(&["0", "GPU-0"])] {
            let refused = allocate(&request, &["0"]);
            assert!(
                matches!(refused, Err(GpuRefusal::Unavailable(_))),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn reserved_devices_are_refused_with_reason() {
        let mut pool = pool(2);
        pool.set_reserved(Some("nvidia"));
        let Err(GpuRefusal::Unavailable(text)) = pool.allocate(&GpuRequest::All, &HashSet::new())
        else {
            panic!("it was given");
        };
        assert!(text.contains("--gpu-share exclusive"), "{text}");
        pool.set_reserved(Some("amd"));
        assert_eq!(
            pool.allocate(&GpuRequest::All, &HashSet::new())
                .unwrap()
                .len(),
            2
        );
    }

    fn request() -> impl Strategy<Value = GpuRequest> {
        let names = prop_oneof![
            (0..10_usize).prop_map(|n| n.to_string()),
            (0..10_usize).prop_map(|n| format!("GPU-{n}")),
        ];
        prop_oneof![
            Just(GpuRequest::All),
            (1..12_u32).prop_map(GpuRequest::Count),
            proptest::collection::vec(names, 1..4).prop_map(GpuRequest::Ids),
        ]
    }

    proptest! {
        #[test]
        fn no_device_has_two_jobs(
            count in 0..9_usize,
            steps in proptest::collection::vec((request(), any::<prop::sample::Index>()), 0..30),
        ) {
            let pool = pool(count);
            let mut jobs: Vec<Vec<String>> = Vec::new();
            for (request, ended) in steps {
                let busy: HashSet<&str> = jobs.iter().flatten().map(String::as_str).collect();
                match pool.allocate(&request, &busy) {
                    Ok(given) => {
                        prop_assert!(!given.is_empty());
                        let distinct: HashSet<&str> = given.iter().map(String::as_str).collect();
                        prop_assert_eq!(distinct.len(), given.len());
                        prop_assert!(distinct.is_disjoint(&busy));
                        match &request {
                            GpuRequest::All => prop_assert_eq!(given.len(), count),
                            GpuRequest::Count(n) => prop_assert_eq!(given.len(), *n as usize),
                            GpuRequest::Ids(ids) => prop_assert_eq!(given.len(), ids.len()),
                        }
                        jobs.push(given);
                    }
                    // A request that fits an idle node can be met later; any other never can.
                    Err(refusal) => {
                        let later = pool.allocate(&request, &HashSet::new());
                        prop_assert_eq!(later.is_ok(), matches!(refusal, GpuRefusal::Busy(_)));
                    }
                }
                if !jobs.is_empty() && jobs.len() > 2 {
                    jobs.remove(ended.index(jobs.len()));
                }
            }
        }
    }
}
