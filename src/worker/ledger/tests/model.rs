//! The registry beside a model of what its callers know.

use super::*;
use proptest::prelude::*;

/// One step of a caller, about the job of this index where it needs one.
#[derive(Clone, Copy, Debug)]
enum Step {
    Admit(usize, u32),
    Write(usize, bool),
    End(usize),
    Forget(usize, Option<u32>),
    Remove(usize, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (job, attempt) = (0..4_usize, 1..4_u32);
    let step = prop_oneof![
        (job.clone(), attempt.clone()).prop_map(|(job, attempt)| Step::Admit(job, attempt)),
        (job.clone(), any::<bool>()).prop_map(|(job, is_ok)| Step::Write(job, is_ok)),
        job.clone().prop_map(Step::End),
        (job.clone(), proptest::option::of(attempt)).prop_map(|(job, n)| Step::Forget(job, n)),
        (job, any::<bool>()).prop_map(|(job, is_ok)| Step::Remove(job, is_ok)),
    ];
    proptest::collection::vec(step, 0..80)
}

/// A registry beside what its callers know of four jobs.
struct Model {
    registry: Registry,
    ids: Vec<(JobId, TaskId)>,
    /// Attempt whose acceptance is being written, by job.
    writing: [Option<(ChangeId, AcceptedJob)>; 4],
    /// Attempt that is being forgotten, by job.
    forgetting: [Option<(ChangeId, u32)>; 4],
    /// Highest attempt that was published, by job.
    published: [u32; 4],
    /// Highest attempt that was forgotten, by job.
    forgotten: [u32; 4],
}

type Checked = Result<(), TestCaseError>;

impl Model {
    fn new() -> Self {
        Self {
            registry: Registry::new(SLOTS, &[], Tombstones::default(), SharedGpus::default()),
            ids: (0..4).map(|_| (JobId::new(), TaskId::new())).collect(),
            writing: Default::default(),
            forgetting: Default::default(),
            published: [0; 4],
            forgotten: [0; 4],
        }
    }

    fn step(&mut self, step: Step) -> Checked {
        match step {
            Step::Admit(n, attempt) => self.admit(n, attempt)?,
            Step::Write(n, is_ok) => self.write(n, is_ok)?,
            Step::End(n) => {
                if let Ok(Lookup::Found(job)) = self.registry.get(None, self.ids[n].0, None) {
                    job.set_outcome(JobOutcome::Completed);
                }
            }
            Step::Forget(n, attempt) => self.forget(n, attempt)?,
            Step::Remove(n, is_ok) => self.remove(n, is_ok)?,
        }
        let writing = || self.writing.iter().flatten().map(|(_, wanted)| wanted);
        let is_replacing = |job: &Arc<Job>| writing().any(|it| it.job_id == job.accepted.job_id);
        let holders = self.registry.jobs();
        let holders = holders
            .iter()
            .filter(|job| job.has_slot() && !is_replacing(job));
        prop_assert!(holders.count() + writing().count() <= SLOTS);
        Ok(())
    }

    fn admit(&mut self, n: usize, attempt: u32) -> Checked {
        let (job_id, task_id) = self.ids[n];
        let wanted = AcceptedJob {
            task_id,
            ..accepted(job_id, attempt)
        };
        match self.registry.admit(&wanted, None) {
            Ok(Decision::Begun { change, .. }) => {
                prop_assert!(self.writing[n].is_none() && self.forgetting[n].is_none());
                prop_assert!(attempt > self.forgotten[n] && attempt > self.published[n]);
                self.writing[n] = Some((change, wanted));
            }
            Ok(Decision::Known(job)) => {
                prop_assert_eq!(job.accepted.attempt, attempt);
                prop_assert!(attempt > self.forgotten[n]);
            }
            Ok(Decision::Busy { is_same, .. }) => {
                let first = self.writing[n].as_ref();
                prop_assert_eq!(is_same, first.is_some_and(|(_, it)| it.attempt == attempt));
                prop_assert!(first.is_some() || self.forgetting[n].is_some());
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn write(&mut self, n: usize, is_ok: bool) -> Checked {
        let Some((change, wanted)) = self.writing[n].take() else {
            return Ok(());
        };
        if !is_ok {
            self.registry.abort(change, Problem::internal());
            return Ok(());
        }
        self.published[n] = wanted.attempt;
        let job = Arc::new(Job::new(wanted, Spool::at("/none".into()), None));
        if let Some(replaced) = self.registry.accept(change, &job) {
            prop_assert!(replaced.is_canceled());
            prop_assert!(replaced.accepted.attempt < job.accepted.attempt);
        }
        Ok(())
    }

    fn forget(&mut self, n: usize, attempt: Option<u32>) -> Checked {
        if let Ok(Removal::Begun { change, attempt }) =
            self.registry.forget(Requester::Gc, self.ids[n].0, attempt)
        {
            prop_assert!(self.writing[n].is_none() && self.forgetting[n].is_none());
            prop_assert!(attempt > self.forgotten[n]);
            self.forgetting[n] = Some((change, attempt));
        }
        Ok(())
    }

    fn remove(&mut self, n: usize, is_ok: bool) -> Checked {
        let (job_id, _) = self.ids[n];
        let Some((change, attempt)) = self.forgetting[n].take() else {
            return Ok(());
        };
        if !is_ok {
            self.registry.abort(change, Problem::internal());
            return Ok(());
        }
        self.forgotten[n] = attempt;
        if let Some(job) = self.registry.remove(change, attempt, Time::now()) {
            prop_assert!(job.has_ended());
            prop_assert_eq!(job.accepted.attempt, attempt);
            self.published[n] = 0;
        }
        prop_assert!(matches!(
            self.registry.get(None, job_id, None),
            Err(problem) if problem.kind == ProblemKind::NotFound
        ));
        Ok(())
    }
}

proptest! {
    #[test]
    fn attempts_fence_and_slots_are_kept(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.step(step)?;
        }
    }
}
