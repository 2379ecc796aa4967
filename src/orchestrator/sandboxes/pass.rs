//! Calls that pass to the node of a sandbox as they come: execs, files, terminals.
//!
//! ```text
//! /v1/sandboxes/{id}/REST ──▶ find, wait for it to run ──▶ node: /v1/worker/sessions/{job}/REST ──▶ answer, checked
//! ```
//!
//! Nothing of them is stored here, except that an exec was started, by whom and with which id. Bodies pass in both
//! directions as they come; a side that does not read holds up the other. A node that is silent is not waited for.
//!
//! That record is committed while the call is under way, and its answer waits for it: so who has an answer finds the exec
//! in the audit log. A commit before the call would cost each exec a flush of the disk, a third of its time. In return, an
//! orchestrator that crashes within that flush has no record of an exec whose caller has no answer yet, and who repeats the
//! call is recorded.

use super::{
    answer::{self, RETRY_SECONDS},
    body::{self, BodyFault},
    gone,
    limits::PassPermit,
    target::{Place, Target, TargetLoss, target},
    upgraded, view,
};
use crate::{
    api::{
        ExecId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        problem::{Problem, ProblemKind},
        sandboxes::{MAX_LIFETIME_SECONDS, RenewSandbox, SandboxStatus, exec::StartExec},
        time::Time,
    },
    background, errors,
    http::{
        client::{CallBody, CallError},
        request::Request,
        response::Reply,
        untrusted,
    },
    identity::Caller,
    orchestrator::{
        AppState,
        node_client::{NodeCallError, NodeCallErrorKind, NodeClient, SessionCall},
    },
    store::StoredSandbox,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// Longest wait for the record of a call after its answer.
const RECORD_TIMEOUT: Duration = Duration::from_secs(1);
/// Headers of requests that pass.
const REQUEST_HEADERS: [HeaderName; 7] = [
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::RANGE,
    HeaderName::from_static("last-event-id"),
];
/// Headers of a request for a WebSocket, which pass, too.
const UPGRADE_HEADERS: [HeaderName; 4] = [
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
];
/// Most bytes of the answer to an exec that is not a stream: warnings about its fields may be added to it.
const MAX_EXEC_ANSWER_BYTES: u64 = 16 * 1024 * 1024;
/// Only protocol to which a connection changes.
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Caller of a call, and the end of the session or key by which they call.
pub(in crate::orchestrator) struct PassCaller {
    pub(in crate::orchestrator) caller: Caller,
    /// Subscribed before the caller was authenticated, so that no end is missed.
    pub(in crate::orchestrator) revocations: watch::Receiver<()>,
}

/// Call whose sandbox is named by a user.
pub(in crate::orchestrator) struct PassedCall {
    pub(in crate::orchestrator) place: Place,
    /// Name of the sandbox or task.
    pub(in crate::orchestrator) name: String,
    /// Path below the sandbox, with its query.
    pub(in crate::orchestrator) path: String,
    /// Whether a person may type the body.
    pub(in crate::orchestrator) is_typed: bool,
}

/// Passes a call on that starts nothing.
pub(in crate::orchestrator) async fn pass(
    state: &Arc<AppState>,
    caller: PassCaller,
    call: PassedCall,
    mut request: Request,
) -> Reply {
    let permit = state.pass_limits.acquire(caller.caller.user.id)?;
    let target = target(state, &caller.caller, call.place, call.name).await?;
    let recorded = target.foreign_owner.is_some().then(|| {
        record(
            state,
            &caller.caller,
            &target,
            AuditAction::SandboxAccess,
            &request.origin(),
            &call.path,
        )
    });
    let chunks = request.chunks();
    let mut headers = passed(request.headers(), &REQUEST_HEADERS);
    if let Some(length) = chunks.announced_size() {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let fault = BodyFault::default();
    let body = body::passing(chunks, call.is_typed, fault.clone());
    let session_call = SessionCall {
        method: request.method().clone(),
        job: target.job,
        path: call.path,
        headers,
    };
    let answered = send(state, caller, &target, (session_call, body), permit).await;
    if let Some(recorded) = recorded {
        wait_recorded(recorded).await;
    }
    answered.map_err(|error| fault.take().map_or(error, ApiError::from))
}

/// Starts an exec: `call` says whether its caller waits for it, follows it or leaves it. The exec has an id from here on,
/// by which it is recorded, and never started twice.
pub(in crate::orchestrator) async fn exec(
    state: &Arc<AppState>,
    caller: PassCaller,
    call: PassedCall,
    mut start: StartExec,
    mut request: Request,
) -> Reply {
    start.resolve_command()?;
    // Before the wait for the sandbox: until the body is sent, it takes memory.
    let permit = state.pass_limits.acquire(caller.caller.user.id)?;
    let id = *start.exec_id.get_or_insert_with(ExecId::new);
    let body = serde_json::to_vec(&start).map_err(ApiError::internal)?;
    drop(start);
    let body = body::whole(body, request.take_reservation());
    let (origin, headers) = (
        request.origin(),
        passed(request.headers(), &REQUEST_HEADERS),
    );
    let method = request.method().clone();
    // Frees the rest of its memory: the exec may run for hours.
    drop(request);
    let target = target(state, &caller.caller, call.place, call.name).await?;
    let subject = format!("exec {id}");
    let recorded = record(
        state,
        &caller.caller,
        &target,
        AuditAction::SandboxExec,
        &origin,
        &subject,
    );
    let session_call = SessionCall {
        method,
        job: target.job,
        path: call.path,
        headers,
    };
    let answered = send(state, caller, &target, (session_call, body), permit).await;
    wait_recorded(recorded).await;
    answered
}

/// Opens a terminal, in an exec of this id. The connection becomes that of the node.
pub(in crate::orchestrator) async fn terminal(
    state: &Arc<AppState>,
    caller: PassCaller,
    call: PassedCall,
    id: ExecId,
    request: Request,
) -> Reply {
    let permit = state.pass_limits.acquire(caller.caller.user.id)?;
    let mut headers = passed(request.headers(), &REQUEST_HEADERS);
    headers.extend(passed(request.headers(), &UPGRADE_HEADERS));
    if request.headers().contains_key(header::UPGRADE) {
        headers.insert(header::UPGRADE, WEBSOCKET);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let target = target(state, &caller.caller, call.place, call.name).await?;
    let (origin, subject) = (request.origin(), format!("terminal, exec {id}"));
    let recorded = record(
        state,
        &caller.caller,
        &target,
        AuditAction::SandboxExec,
        &origin,
        &subject,
    );
    let session_call = SessionCall {
        method: request.method().clone(),
        job: target.job,
        path: call.path,
        headers,
    };
    let body = body::whole(Vec::new(), None);
    let answered = send(state, caller, &target, (session_call, body), permit).await;
    wait_recorded(recorded).await;
    answered
}

fn passed(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let passed = headers.iter().filter(|(name, _)| names.contains(name));
    passed
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Sends a call to the node, and makes an answer of its own. `permit` came before the call was recorded, so that the
/// record has no call that was refused.
async fn send(
    state: &Arc<AppState>,
    caller: PassCaller,
    target: &Target,
    (call, body): (SessionCall, CallBody),
    permit: PassPermit,
) -> Reply {
    let node = state.store.node_get(target.node).await?;
    let client = node.as_ref().and_then(|node| state.node_client(node));
    let client = client.ok_or_else(|| silent("that has the sandbox"))?;
    let slug = client.slug().to_owned();
    let is_exec = call.path.starts_with("exec?") || call.path == "exec";
    let mut access_end = access_end(state, caller);
    let answer = tokio::select! {
        biased;
        answer = client.pass(call, body) => answer.map_err(|error| failed(&client, error))?,
        () = &mut access_end => return Err(access_ended().into()),
        loss = target.lost() => return Err(match loss {
            TargetLoss::Unreachable => silent(&slug),
            TargetLoss::Ended => target.gone(state).await,
        }
        .into()),
    };
    match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => Ok(upgraded::pass_on(answer, access_end, permit)),
        status if untrusted::is_success(status) => {
            let is_document = is_exec && !is_stream(&answer);
            let most = if is_document {
                MAX_EXEC_ANSWER_BYTES
            } else {
                u64::MAX
            };
            let passed = answer::success(answer, &slug, most, access_end, permit);
            Ok(passed?)
        }
        _ => Err(answer::problem(answer, &slug).await.into()),
    }
}

fn is_stream(answer: &http::Response<Incoming>) -> bool {
    let content_type = answer.headers().get(header::CONTENT_TYPE);
    content_type == Some(&HeaderValue::from_static("text/event-stream"))
}

/// Resolves when the session or key of a caller has ended.
pub(super) fn access_end(state: &Arc<AppState>, caller: PassCaller) -> BoxFuture<'static, ()> {
    let state = Arc::clone(state);
    let PassCaller {
        caller,
        revocations,
    } = caller;
    async move { state.identity.ended(&caller, revocations).await }.boxed()
}

/// Records who did what in a sandbox, in the background: a caller that hangs up is recorded, too.
fn record(
    state: &AppState,
    caller: &Caller,
    target: &Target,
    action: AuditAction,
    origin: &RequestOrigin,
    subject: &str,
) -> JoinHandle<()> {
    let event = event(caller, target, action, origin, subject);
    let store = state.store.clone();
    background::spawn("record_exec", async move {
        if let Err(error) = store.audit_add(event).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "audit event of an exec can't be stored");
        }
    })
}

/// Waits until an event is stored, and not for long: a disk that hangs must not hide the answer of a node.
async fn wait_recorded(recorded: JoinHandle<()>) {
    // A failure is in the log.
    let _ = timeout(RECORD_TIMEOUT, recorded).await;
}

/// Event of who does what in a sandbox; never with commands, paths or contents.
pub(super) fn event(
    caller: &Caller,
    target: &Target,
    action: AuditAction,
    origin: &RequestOrigin,
    subject: &str,
) -> AuditEvent {
    let subject = subject.split('?').next().unwrap_or_default();
    let of_task = match target.place {
        Place::Sandbox => "",
        Place::Task => " in a task",
    };
    let of_owner = target.foreign_owner.as_ref();
    let of_owner = of_owner.map_or_else(String::new, |owner| format!(" of {owner}"));
    let event = AuditEvent {
        reason: Some(format!("{subject}{of_task}{of_owner}")),
        ..caller.audit_event(action, origin)
    };
    event.to(target.id.to_string())
}

fn failed(client: &NodeClient<'_>, error: CallError) -> ApiError {
    let slug = client.slug();
    let problem = match &error {
        CallError::Transport { connected: true, .. } => Problem::new(
            ProblemKind::Unavailable,
            format!(
                "the connection to the node {slug} broke off before it answered; send the call again, an exec with the \
                 same exec_id, so that it is not started twice"
            ),
        )
        .retry_after(RETRY_SECONDS),
        _ => silent(slug),
    };
    problem.caused_by(error)
}

pub(super) fn silent(slug: &str) -> Problem {
    let detail = format!(
        "the node {slug} does not answer at present; the sandbox goes on there, so send the call again"
    );
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_SECONDS)
}

pub(super) fn access_ended() -> Problem {
    Problem::unauthorized("your session or key ended meanwhile; log in again, or use another key")
}

/// Gives a sandbox a new lifetime at its node. Returns its end.
pub(super) async fn renew(
    state: &AppState,
    stored: &StoredSandbox,
    renew: RenewSandbox,
) -> Result<Time, ApiError> {
    match view::status(stored, state.jobs.watches.current(stored.id)) {
        SandboxStatus::Ended => return Err(gone(stored).into()),
        SandboxStatus::Queued | SandboxStatus::Starting => {
            let detail = "the sandbox does not run yet, so its lifetime has not begun; renew it when it runs";
            return Err(Problem::new(ProblemKind::Conflict, detail).into());
        }
        SandboxStatus::Running => {}
    }
    let node = match stored.node {
        Some(node) => state.store.node_get(node).await?,
        None => None,
    };
    let client = node.as_ref().and_then(|node| state.node_client(node));
    let client = client.ok_or_else(|| silent("that has the sandbox"))?;
    let renewed = client.renew_session(stored.job, renew).await;
    let renewed = renewed.map_err(|error| not_renewed(client.slug(), error))?;
    let most = Duration::from_secs(MAX_LIFETIME_SECONDS);
    let left = Duration::from_millis(renewed.expires_in_ms).min(most);
    Ok(Time::now().plus(left))
}

fn not_renewed(slug: &str, error: NodeCallError) -> ApiError {
    let problem = match error.kind {
        NodeCallErrorKind::NotFound if error.is_own_answer => {
            Problem::new(ProblemKind::Gone, "the sandbox has ended; create a new one")
        }
        NodeCallErrorKind::Unsupported | NodeCallErrorKind::NotImplemented => Problem::new(
            ProblemKind::Conflict,
            format!("the node {slug} has no such call; upgrade cynode there"),
        ),
        _ => silent(slug),
    };
    problem.caused_by(error)
}
