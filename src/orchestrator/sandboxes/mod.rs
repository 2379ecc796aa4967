//! Use cases of sandboxes that stay: create, list, show, renew, delete; the calls that [pass](pass) to its node; and
//! [snapshots].
//!
//! A sandbox is stored as a task without a command, and one job. Queue, placement, leases and cancels are those of jobs; the
//! calls about tasks don't show it. It has one attempt: what is in it can't begin again at another node.
//!
//! A sandbox is named by its id, by its name, or by the beginning of its id. The name of one that has ended stands for it
//! until a new one has it.

mod answer;
mod body;
mod claims;
mod limits;
mod pass;
mod snapshot;
mod snapshot_jobs;
mod snapshot_list;
mod snapshots;
mod target;
mod upgraded;
mod view;

pub(super) use claims::SnapshotClaims;
pub(super) use limits::PassLimits;
pub(super) use pass::{PassCaller, PassedCall, exec, pass, terminal};
pub(super) use snapshot::take as take_snapshot;
pub(super) use snapshot_jobs::{MissingSnapshots, fail_if_deleted, fail_orphaned};
pub(super) use snapshot_list::list as list_snapshots;
pub(super) use snapshots::{
    DeleteSnapshot, check_known as check_snapshot, delete as delete_snapshot,
};
pub(super) use target::Place;

use super::{
    AppState,
    cancel::{self, CancelError},
    secrets, tasks,
};
use crate::{
    api::{
        TaskId,
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        problem::{Problem, ProblemKind},
        sandboxes::{CreateSandbox, RenewSandbox, Sandbox, SandboxList, SandboxStatus},
        snapshots::resolve_image,
        tasks::TaskStatus,
        time::Time,
    },
    background::{self, run_to_end},
    errors,
    identity::Caller,
    store::{
        CreateSandboxOutcome, DeleteOutcome, MAX_LANES_PER_USER, RunningJob, SandboxFilter,
        SandboxRecord, StoredSandbox, TaskMatch,
    },
    wait,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Seconds after which a user at a limit may try again.
const LIMIT_RETRY_SECONDS: u64 = 5;
/// Seconds after which the end of a sandbox may be stored.
const UNDECIDED_RETRY_SECONDS: u64 = 5;

/// Creates a sandbox, and waits for it to run for as long as the request says. It is stored, and stays where the caller
/// hangs up.
///
/// Fails where a field is invalid, a host is not allowed, there is no such snapshot or secret, the name is taken, or a limit
/// is reached.
pub(super) async fn create(
    state: &Arc<AppState>,
    caller: &Caller,
    mut request: CreateSandbox,
    origin: &RequestOrigin,
) -> Result<Sandbox, ApiError> {
    let wait = Duration::from_secs(request.wait_seconds());
    let name = request.name.clone();
    request.image = resolve_image(request.image.take(), caller.user.id)?;
    let egress = request.egress.clone();
    let spec = request.resolve(state.settings.default_image.as_str())?;
    if let Some(egress) = &egress {
        state.settings.egress.check(egress)?;
    }
    check_snapshot(state, caller.user.id, &spec.sandbox.image).await?;
    secrets::check(state, caller.user.id, &spec.sandbox).await?;
    let secrets_used = secrets::use_event(caller, &spec.sandbox, origin);
    let lifetime = spec
        .sandbox
        .session
        .map_or(0, |session| session.lifetime_seconds);
    let event = caller.audit_event(AuditAction::SandboxCreate, origin);
    let record = SandboxRecord {
        name: name.clone(),
        started_at: None,
        expires_at: event.at.plus(Duration::from_secs(lifetime)),
    };
    let (user, image) = (caller.user.id, spec.sandbox.image.clone());
    let (authority, shared) = (caller.authority(), Arc::clone(state));
    let created = run_to_end("create_sandbox", async move {
        let limits = (shared.settings.queue, shared.settings.sandboxes);
        let new = (spec, record);
        let outcome = shared
            .store
            .sandbox_create(authority, new, limits, event, secrets_used)
            .await;
        if let Ok(CreateSandboxOutcome::Created(id)) = &outcome {
            shared.metrics.record_sandbox_created();
            tracing::info!(sandbox = %id, "sandbox created");
            shared.jobs.wake.notify_one();
            fail_if_deleted(&shared, user, &image).await;
        }
        outcome
    });
    let outcome = created.await.map_err(ApiError::internal)??;
    let id = created_id(state, outcome, name.as_deref())?;
    wait_until_running(state, id, wait).await?;
    shown(state, caller, id).await
}

/// Id of a sandbox that was created, or the problem that there is instead.
fn created_id(
    state: &AppState,
    outcome: CreateSandboxOutcome,
    name: Option<&str>,
) -> Result<TaskId, Problem> {
    let limits = state.settings.sandboxes;
    let too_many = |detail| {
        Err(Problem::new(ProblemKind::TooManyRequests, detail).retry_after(LIMIT_RETRY_SECONDS))
    };
    match outcome {
        CreateSandboxOutcome::Created(id) => Ok(id),
        CreateSandboxOutcome::NameTaken(id) => {
            let name = name.unwrap_or_default();
            let detail = format!(
                "your sandbox {id} is called {name} and has not ended; use it, choose another name, or delete it first \
                 (cynode sandbox rm {name})"
            );
            Err(Problem::new(ProblemKind::Conflict, detail).about("name"))
        }
        CreateSandboxOutcome::TooManyOfUser => too_many(format!(
            "you have {} sandboxes that have not ended, which is the limit (--max-sandboxes-per-user of the \
             orchestrator); delete one (cynode sandbox list, cynode sandbox rm), then try again",
            limits.per_user
        )),
        CreateSandboxOutcome::TooMany => too_many(format!(
            "there are {} sandboxes of all users, which is the limit (--max-sandboxes of the orchestrator); delete one \
             of yours, or try again when another one has ended",
            limits.all
        )),
        CreateSandboxOutcome::QueueFull(queue) => Err(tasks::queue_full(format!(
            "{queue} is full; wait until some of its tasks have started, then try again"
        ))),
        CreateSandboxOutcome::TooManyLanes => Err(tasks::queue_full(format!(
            "your queued tasks and sandboxes have {MAX_LANES_PER_USER} different requirements on nodes (node_labels, \
             gpus and the like), which is the limit; wait until some have started, then try again"
        ))),
    }
}

/// Waits until a sandbox runs or has ended, at most for `limit`.
async fn wait_until_running(state: &AppState, id: TaskId, limit: Duration) -> Result<(), ApiError> {
    // The watch comes before the look at the store: an end in between shows in the watch.
    let watch = state.jobs.watches.for_task(id);
    let mut states = watch.subscribe();
    let stored = state.store.sandbox_get(id, None).await?;
    if stored.is_none_or(|stored| stored.ended_at.is_some()) {
        return Ok(());
    }
    let settled = wait::until(&mut states, |state| {
        state.has_started || state.status.is_final()
    });
    // The sender lives in `watch`, so only the time can run out.
    let _ = timeout(limit, settled).await;
    Ok(())
}

/// Lists the sandboxes that the caller may see, newest first; for an admin with their owners. `filter.owner` is set here.
pub(super) async fn list(
    state: &AppState,
    caller: &Caller,
    filter: SandboxFilter,
) -> Result<SandboxList, ApiError> {
    let filter = SandboxFilter {
        owner: caller.visible_owner(),
        ..filter
    };
    let page = state.store.sandbox_list(caller.user.id, filter).await?;
    let last = page.sandboxes.last().filter(|_| page.more);
    let next_cursor = last.map_or_else(String::new, |sandbox| sandbox.id.to_string());
    let sandboxes = page.sandboxes.iter();
    Ok(SandboxList {
        sandboxes: sandboxes
            .map(|stored| view(state, caller, stored).shortened())
            .collect(),
        next_cursor,
    })
}

fn view(state: &AppState, caller: &Caller, stored: &StoredSandbox) -> Sandbox {
    let sandbox = view::sandbox(stored, state.jobs.watches.current(stored.id));
    Sandbox {
        owner: sandbox.owner.filter(|_| caller.user.is_admin),
        ..sandbox
    }
}

/// Finds the sandbox that `name` names. Fails with 404 where the caller sees none, and with 409 where several match.
pub(super) async fn find(
    state: &AppState,
    caller: &Caller,
    name: String,
) -> Result<StoredSandbox, ApiError> {
    let (store, user) = (&state.store, &caller.user);
    let ambiguous = |detail| Err(Problem::new(ProblemKind::Conflict, detail).into());
    let found = store.sandbox_find(name.clone(), user.id, user.is_admin);
    let id = match found.await? {
        TaskMatch::One(id) => id,
        TaskMatch::None => return Err(Problem::unknown_sandbox(&name).into()),
        TaskMatch::SeveralNames => {
            return ambiguous("sandboxes of several users have this name; give an id");
        }
        TaskMatch::SeveralIds => {
            return ambiguous("several sandbox ids begin like this; give more characters");
        }
    };
    let sandbox = store.sandbox_get(id, caller.visible_owner()).await?;
    Ok(sandbox.ok_or_else(|| Problem::unknown_sandbox(&name))?)
}

/// Shows a sandbox, and what it waits for.
pub(super) async fn show(
    state: &AppState,
    caller: &Caller,
    name: String,
) -> Result<Sandbox, ApiError> {
    let stored = find(state, caller, name).await?;
    Ok(with_wait(state, view(state, caller, &stored)).await)
}

async fn shown(state: &AppState, caller: &Caller, id: TaskId) -> Result<Sandbox, ApiError> {
    let stored = state.store.sandbox_get(id, caller.visible_owner()).await?;
    let stored = stored.ok_or_else(|| Problem::unknown_sandbox(&id.to_string()))?;
    Ok(with_wait(state, view(state, caller, &stored)).await)
}

/// Adds what a sandbox waits for that has not ended.
async fn with_wait(state: &AppState, mut sandbox: Sandbox) -> Sandbox {
    let status = match sandbox.status {
        SandboxStatus::Queued => TaskStatus::Queued,
        SandboxStatus::Starting | SandboxStatus::Running => TaskStatus::Running,
        SandboxStatus::Ended => return sandbox,
    };
    sandbox.detail = tasks::waiting_for(state, sandbox.id, status).await;
    sandbox
}

/// Gives a sandbox a new lifetime, counted from now, and shows it. Fails with 410 where it has ended, and with 409 where it
/// does not run yet.
pub(super) async fn renew(
    state: &AppState,
    caller: &Caller,
    name: String,
    renew: RenewSandbox,
    origin: &RequestOrigin,
) -> Result<Sandbox, ApiError> {
    crate::api::sandboxes::check_seconds("/lifetime_seconds", renew.lifetime_seconds)?;
    let stored = find(state, caller, name).await?;
    let event = caller.audit_event(AuditAction::SandboxRenew, origin);
    let expires_at = pass::renew(state, &stored, renew).await?;
    if !state
        .store
        .sandbox_renew(stored.id, expires_at, event)
        .await?
    {
        let ended = state.store.sandbox_get(stored.id, None).await?;
        return Err(ended
            .map_or_else(
                || Problem::unknown_sandbox(&stored.id.to_string()),
                |stored| gone(&stored),
            )
            .into());
    }
    shown(state, caller, stored.id).await
}

/// Ends a sandbox, and waits until its end is stored; removes the record of one that has ended already. Goes on if the
/// caller hangs up.
pub(super) async fn delete(
    state: &Arc<AppState>,
    caller: &Caller,
    name: String,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    let stored = find(state, caller, name).await?;
    let id = stored.id;
    let event = caller.audit_event(AuditAction::SandboxDelete, origin);
    if stored.ended_at.is_some() {
        let outcome = tasks::delete_ended(state, caller, (id, vec![stored.job]), event);
        return match outcome.await? {
            DeleteOutcome::Deleted => Ok(()),
            DeleteOutcome::Unknown => Err(Problem::unknown_sandbox(&id.to_string()).into()),
            DeleteOutcome::Unfinished(_) => Err(undecided().into()),
        };
    }
    let shared = Arc::clone(state);
    let ended = run_to_end("delete_sandbox", async move {
        cancel::cancel(&shared, id, true, event).await
    });
    match ended.await.map_err(ApiError::internal)? {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(undecided().into()),
        Err(CancelError::Failed(error) | CancelError::Unrecorded(error)) => Err(error.into()),
    }
}

fn undecided() -> Problem {
    let detail =
        "the sandbox is being ended, but its end is not known yet; look at it, or delete it again";
    Problem::new(ProblemKind::Unavailable, detail).retry_after(UNDECIDED_RETRY_SECONDS)
}

/// 410 of a sandbox that has ended.
fn gone(stored: &StoredSandbox) -> Problem {
    let reason = view::end_reason(stored.status, &stored.end).as_str();
    let detail = format!("the sandbox has ended: {reason}; create a new one");
    Problem::new(ProblemKind::Gone, detail)
}

/// Stores that a sandbox runs, in the background: after a restart its node reports it again.
pub(super) fn record_start(state: &AppState, job: &RunningJob) {
    let (store, id, attempt) = (state.store.clone(), job.id, job.attempt);
    background::spawn("record_sandbox_start", async move {
        if let Err(error) = store.sandbox_start(id, attempt, Time::now()).await {
            let error = errors::chain(&error);
            tracing::warn!(job = %id, error, "start of a sandbox can't be stored");
        }
    });
}
