//! A call of a model: from its request to the head of its answer.
//!
//! The head waits for the first byte, so that a node that fails before can be replaced. A client of a stream that waits
//! longer than [`KEEP_ALIVE_INTERVAL`] gets the head of a success, and comments until the answer begins: proxies and
//! clients cut connections that are silent. What fails after that comes as an event.

use super::{
    answer::{Answer, AnswerContext, access_ended, body},
    attempt::{Begun, attempt},
    body::{Receiving, RequestBody, receive},
    metrics::Meter,
    queue::Wanted,
    record::{ModelUser, Subject, Unanswered},
};
use crate::{
    api::{
        NodeId,
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    errors,
    http::{request::Request, response::Reply},
    identity::Caller,
    inference::{Endpoint, error::in_stream, relay},
    orchestrator::AppState,
    store::InferenceUser,
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Interval between comments to a client that waits for the first byte of a stream.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Time limit of a call that no model computes.
const SHORT_TIMEOUT: Duration = Duration::from_secs(30);
/// Comment of a stream of server-sent events.
const KEEP_ALIVE: &[u8] = b": waiting for the model\n\n";
/// Most bytes of an error of a model server that are repeated in a stream.
const MAX_ERROR_BYTES: usize = 16 * 1024;

/// Answer that has not begun.
type Pending = BoxFuture<'static, Result<Begun, ApiError>>;

/// Call that is on its way.
struct ModelCall {
    state: Arc<AppState>,
    endpoint: Endpoint,
    headers: HeaderMap,
    subject: Arc<Subject>,
    body: Arc<RequestBody>,
}

/// Call of the model that the body of `request` names. `revocations` is older than the check of `caller`.
pub(in crate::orchestrator) async fn call(
    state: Arc<AppState>,
    caller: Caller,
    revocations: watch::Receiver<()>,
    endpoint: Endpoint,
    request: Request,
) -> Reply {
    let access_end = access_end(&state, &caller, revocations);
    let user = ModelUser::Caller(caller);
    pass(state, (user, access_end), endpoint, request).await
}

/// Call of the model that the body of `request` names, for a job. Its node ends it with the job.
pub(in crate::orchestrator) async fn call_of_job(
    state: Arc<AppState>,
    job: InferenceUser,
    endpoint: Endpoint,
    request: Request,
) -> Reply {
    let access_end = std::future::pending().boxed();
    pass(state, (ModelUser::Job(job), access_end), endpoint, request).await
}

async fn pass(
    state: Arc<AppState>,
    (user, access_end): (ModelUser, BoxFuture<'static, ()>),
    endpoint: Endpoint,
    mut request: Request,
) -> Reply {
    let mut meter = Meter::start(&state, endpoint);
    let received = receive(&mut request, endpoint).await;
    let (body, model, receiving) =
        received.inspect_err(|error| meter.record_problem(error.problem()))?;
    let subject = Arc::new(Subject::new(&user, endpoint, request.origin(), model));
    let mut context = AnswerContext {
        state: Arc::clone(&state),
        subject: Arc::clone(&subject),
        family: endpoint.family(),
        access_end,
        time_limit: time_limit(&state, endpoint),
        meter,
    };
    let call = ModelCall {
        headers: relay::request_headers(request.headers()),
        body: Arc::clone(&body),
        state,
        endpoint,
        subject,
    };
    if endpoint.computes() {
        // The queue limits calls that wait, and the nodes those under way.
        request.mark_limited_elsewhere();
    }
    // Frees its memory: the answer may take minutes.
    drop(request);
    let mut pending = call.begin().boxed();
    loop {
        let begun = tokio::select! {
            biased;
            () = &mut context.access_end => Ok(Err(access_ended().into())),
            begun = timeout(KEEP_ALIVE_INTERVAL, &mut pending) => begun,
        };
        match begun {
            Ok(Ok(begun)) => return Ok(Answer::new(context, begun, receiving).response()),
            Ok(Err(error)) => {
                context.meter.record_problem(error.problem());
                return Err(error);
            }
            Err(_) if endpoint.family().has_events() && endpoint.is_stream(body.stream_field()) => {
                return Ok(waiting(context, pending, receiving));
            }
            // Only a stream of events can hold comments.
            Err(_) => {}
        }
    }
}

/// Time for the first byte of an answer, and between two: short for one that no model computes.
fn time_limit(state: &AppState, endpoint: Endpoint) -> Duration {
    let limit = state.settings.models.timeout;
    if endpoint.computes() {
        limit
    } else {
        limit.min(SHORT_TIMEOUT)
    }
}

/// Resolves when the session or key of a caller has ended.
fn access_end(
    state: &Arc<AppState>,
    caller: &Caller,
    revocations: watch::Receiver<()>,
) -> BoxFuture<'static, ()> {
    let (state, caller) = (Arc::clone(state), caller.clone());
    async move { state.identity.ended(&caller, revocations).await }.boxed()
}

impl ModelCall {
    /// Tries nodes until the answer of one begins, time is up, or the body turns out to be invalid.
    async fn begin(self) -> Result<Begun, ApiError> {
        self.body.while_valid(self.begin_in_time()).await
    }

    async fn begin_in_time(&self) -> Result<Begun, ApiError> {
        let limit = time_limit(&self.state, self.endpoint);
        let begun = timeout(limit, self.try_nodes()).await;
        begun.unwrap_or_else(|_| {
            let seconds = limit.as_secs();
            let detail = if self.endpoint.computes() {
                format!(
                    "no answer began within {seconds} s (--inference-timeout of the orchestrator); try again, or ask a smaller model"
                )
            } else {
                format!("no answer began within {seconds} s; try again")
            };
            Err(Problem::new(ProblemKind::ModelServerTimeout, detail).into())
        })
    }

    async fn try_nodes(&self) -> Result<Begun, ApiError> {
        let queue = &self.state.models;
        let (mut failed, mut last_error) = (Vec::<NodeId>::new(), None);
        let mut unanswered = Unanswered::new(&self.state, &self.subject);
        loop {
            let wanted = Wanted {
                user: self.subject.user,
                model: &self.subject.model,
                counts: self.endpoint.computes(),
                except: &failed,
            };
            let permit = match queue.acquire(&self.state, wanted).await {
                Ok(permit) => permit,
                Err(error) => return Err(last_error.unwrap_or(error)),
            };
            let node = Arc::clone(&permit.node);
            unanswered.note_node(&node);
            let (endpoint, headers) = (self.endpoint, &self.headers);
            let attempt = attempt(&self.state, endpoint, headers, &self.body, permit);
            let error = match attempt.await {
                Ok(begun) if begun.status.is_server_error() => {
                    failed.push(node.id);
                    if !self.has_other_node(&failed).await? {
                        unanswered.end();
                        return Ok(begun);
                    }
                    last_error = Some(server_error(&node.slug, begun.status));
                    tracing::info!(
                        node = node.slug,
                        status = begun.status.as_u16(),
                        "model server failed; trying another node"
                    );
                    continue;
                }
                Ok(begun) => {
                    unanswered.end();
                    return Ok(begun);
                }
                Err(error) => error,
            };
            if let Some(problem) = self.body.failure() {
                return Err(problem.into());
            }
            queue.record_failure(node.id);
            failed.push(node.id);
            let cause = error.cause().map(errors::chain);
            tracing::info!(
                node = node.slug,
                reason = error.problem().detail,
                cause,
                "node failed a call of a model"
            );
            last_error = Some(error);
        }
    }

    async fn has_other_node(&self, failed: &[NodeId]) -> Result<bool, ApiError> {
        let registry = self.state.models.registry(&self.state, Duration::MAX);
        Ok(registry.await?.has_other(&self.subject.model, failed))
    }
}

/// Error of a node whose answer was dropped for that of another one.
fn server_error(slug: &str, status: StatusCode) -> ApiError {
    let detail = format!("the model server of the node {slug} answered {status}; try again");
    Problem::new(ProblemKind::ModelServerFailed, detail).into()
}

/// Answer to a client that gets comments until the answer of the model server begins.
fn waiting(
    context: AnswerContext,
    pending: Pending,
    receiving: Option<Receiving>,
) -> crate::http::response::Response {
    let mut headers = HeaderMap::new();
    let events = HeaderValue::from_static("text/event-stream");
    headers.insert(header::CONTENT_TYPE, events);
    let comment = stream::once(std::future::ready(Ok(Bytes::from_static(KEEP_ALIVE))));
    let rest = stream::unfold(Some((context, pending, receiving)), |waiting| async move {
        let (mut context, mut pending, receiving) = waiting?;
        let next = tokio::select! {
            begun = &mut pending => match begun {
                Ok(begun) => passed(Answer::new(context, begun, receiving)).await,
                Err(error) => {
                    let cause = error.cause().map(errors::chain);
                    tracing::info!(reason = error.problem().detail, cause, "call of a model failed");
                    failure(&mut context, error.problem())
                }
            },
            () = &mut context.access_end => failure(&mut context, &access_ended()),
            () = tokio::time::sleep(KEEP_ALIVE_INTERVAL) => {
                let comment = Ok(Bytes::from_static(KEEP_ALIVE));
                let comment = stream::once(std::future::ready(comment)).boxed();
                return Some((comment, Some((context, pending, receiving))));
            }
        };
        Some((next, None))
    });
    relay::assemble(StatusCode::OK, headers, body(comment.chain(rest.flatten())))
}

/// Chunks of an answer.
type Chunks = stream::BoxStream<'static, io::Result<Bytes>>;

fn failure(context: &mut AnswerContext, problem: &Problem) -> Chunks {
    context.meter.record_problem(problem);
    let id = &context.subject.request_id;
    let event = in_stream(context.family, problem, id);
    stream::once(std::future::ready(Ok(event))).boxed()
}

/// Answer that has begun, after the head of a success has been sent: an error becomes an event.
async fn passed(mut answer: Answer) -> Chunks {
    let status = answer.status();
    if status.is_success() && answer.has_events() {
        return answer.chunks().boxed();
    }
    answer.record_failure();
    let family = answer.family();
    let id = answer.request_id().to_owned();
    let text = answer.read(MAX_ERROR_BYTES).await;
    let detail = serde_json::from_slice::<serde_json::Value>(&text).ok();
    let detail = detail.and_then(|answer| error_text(&answer).map(str::to_owned));
    let detail = match detail {
        Some(detail) => format!("the model server answered {status}: {detail}"),
        None => format!("the model server answered {status}, and no stream"),
    };
    let problem = Problem::new(ProblemKind::ModelServerFailed, detail);
    let event = in_stream(family, &problem, &id);
    stream::once(std::future::ready(Ok(event))).boxed()
}

/// Text of an error in the shape of any of the APIs.
fn error_text(answer: &serde_json::Value) -> Option<&str> {
    let error = answer.get("error")?;
    error.as_str().or_else(|| error.get("message")?.as_str())
}
