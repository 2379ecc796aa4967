//! A job without a sandbox: the model server of this machine answers a prompt, and the answer is the job's stdout.
//!
//! Like any job it has a slot, a log and a time limit, and is canceled by its orchestrator. It has no shim, so it ends
//! with this process: the next start finds it lost, and the orchestrator gives it another attempt.

mod default_model;

use self::default_model::default_model;
use super::{
    context::WorkerContext,
    inference::ModelServer,
    job_end,
    job_stop::stop_requested,
    ledger::Job,
    prepare::{acquire_slot, engine_error},
};
use crate::{
    api::{
        events::Stream,
        jobs::{JobErrorKind, JobInference, Outcome, Prompt},
    },
    backoff::Backoff,
    http::client::{CallBody, CallError},
    inference::chat::{self, ChatRequest, Chunk, Event, Message, Part, Role, error_of},
    spool::{JobEnd, JobRecorder, Spool},
    text::clean_prefix,
};
use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Instant, sleep},
};

/// Parts of an answer that wait for the log.
const MAX_WAITING_PARTS: usize = 64;
/// Longest event of an answer, in bytes.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Longest error of a model server that is read, and that is shown, in bytes.
const MAX_ERROR_BYTES: usize = 64 * 1024;
const MAX_SHOWN_BYTES: usize = 4096;
/// Time for which a model server that takes no connections is waited for: it may be restarting.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest and longest pause between two tries meanwhile.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(200);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Output of the job: a stream and its next text.
type Output = (Stream, String);

/// Answers the prompt of a job; returns how the job ended. Its output is in the log then.
pub(super) async fn answer(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    prompt: &Prompt,
    timeout_seconds: Option<u64>,
) -> JobEnd {
    let seconds = ctx
        .access
        .borrow()
        .effective_timeout_seconds(timeout_seconds);
    // Outlives the work: a model that was stopped has answered, too.
    let mut inference = None;
    let work = run(ctx, job, prompt, &mut inference);
    let work = tokio::time::timeout(Duration::from_secs(seconds), work);
    let end = tokio::select! {
        end = work => end.unwrap_or_else(|_| JobEnd::stopped(Outcome::Timeout)),
        request = stop_requested(job, None) => job_end::stopped(request.reason),
    };
    JobEnd { inference, ..end }
}

async fn run(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    prompt: &Prompt,
    inference: &mut Option<JobInference>,
) -> JobEnd {
    let _slot = match acquire_slot(ctx, job).await {
        Ok(slot) => slot,
        Err(error) => return error.into(),
    };
    // From now on a later process does not answer it again into the same log.
    let marked = job.with_spool(Spool::mark_started).await.flatten();
    if let Err(error) = marked {
        return engine_error(format!("the start of the job can't be recorded: {error}")).into();
    }
    let (sender, outputs) = channel(MAX_WAITING_PARTS);
    let (end, written) = tokio::join!(
        ask(&ctx.model_server, prompt, inference, sender),
        write_log(ctx, job, outputs)
    );
    match written {
        Ok(()) => end,
        Err(error) => engine_error(format!("the job's log can't be written: {error}")).into(),
    }
}

/// Writes output to the log as it comes, until there is no more.
async fn write_log(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    mut outputs: Receiver<Output>,
) -> io::Result<()> {
    let (accepted, log_bytes) = (job.accepted.clone(), ctx.log_bytes);
    let notified = Arc::clone(job);
    let written = job.with_log(move |spool| {
        let mut recorder = JobRecorder::open(spool, accepted, log_bytes)?;
        recorder.mark_started();
        notified.notify();
        while let Some((stream, text)) = outputs.blocking_recv() {
            recorder.append_output(stream, text.as_bytes());
            notified.notify();
        }
        Ok::<_, io::Error>(())
    });
    written.await.flatten()
}

/// Asks the model, and sends on what it answers; says in `inference` which one it was, as soon as it is asked. The
/// connection closes when this is dropped, which ends the answer.
async fn ask(
    server: &ModelServer,
    prompt: &Prompt,
    inference: &mut Option<JobInference>,
    outputs: Sender<Output>,
) -> JobEnd {
    match try_ask(server, prompt, inference, &outputs).await {
        Ok(()) => JobEnd::exited(0),
        Err(Refusal::Rejected(reason)) => {
            // As a command would: the reason on stderr, and another exit code. Without a log nobody reads it.
            let _ = outputs.send((Stream::Stderr, format!("{reason}\n"))).await;
            JobEnd::exited(1)
        }
        Err(Refusal::Unreachable(reason)) => {
            JobEnd::failed(JobErrorKind::ModelServerFailed, reason)
        }
        Err(Refusal::Failed(kind, reason)) => JobEnd::failed(kind, reason),
    }
}

/// Reason for which there is no answer, or none to its end.
enum Refusal {
    /// The model server does not accept the prompt; another one would not, either.
    Rejected(String),
    /// The model server takes no connections at present.
    Unreachable(String),
    Failed(JobErrorKind, String),
}

fn call_failed(error: &CallError) -> Refusal {
    let is_unreachable = matches!(
        error,
        CallError::Transport {
            connected: false,
            ..
        }
    );
    if is_unreachable {
        unreachable_server(&error.to_string())
    } else {
        server_failed(&error.to_string())
    }
}

fn unreachable_server(reason: &str) -> Refusal {
    let reason = clean_prefix(reason, MAX_SHOWN_BYTES);
    Refusal::Unreachable(format!(
        "the model server of this node can't be reached: {reason}"
    ))
}

fn server_failed(reason: &str) -> Refusal {
    let reason = clean_prefix(reason, MAX_SHOWN_BYTES);
    let message = format!("the model server of this node failed: {reason}");
    Refusal::Failed(JobErrorKind::ModelServerFailed, message)
}

async fn try_ask(
    server: &ModelServer,
    prompt: &Prompt,
    inference: &mut Option<JobInference>,
    outputs: &Sender<Output>,
) -> Result<(), Refusal> {
    let model = while_restarting(|| model_of(server, prompt)).await?;
    let inference = inference.insert(JobInference {
        model,
        prompt_tokens: 0,
        completion_tokens: 0,
    });
    let answer = while_restarting(|| begin(server, prompt, &inference.model)).await?;
    read(answer, inference, outputs).await
}

/// Tries again for a while where the model server takes no connections: it may be restarting.
async fn while_restarting<T, F>(mut operation: impl FnMut() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    let start = Instant::now();
    let mut backoff = Backoff::new(MIN_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
    loop {
        match operation().await {
            Err(Refusal::Unreachable(_)) if start.elapsed() < RESTART_TIMEOUT => {
                sleep(backoff.next_delay()).await;
            }
            done => return done,
        }
    }
}

async fn model_of(server: &ModelServer, prompt: &Prompt) -> Result<String, Refusal> {
    match &prompt.model {
        Some(model) => Ok(model.clone()),
        None => default_model(server, &base_url(server)?).await,
    }
}

fn base_url(server: &ModelServer) -> Result<String, Refusal> {
    let address = server.address();
    let address = address.ok_or_else(|| unreachable_server("there is none at present"))?;
    Ok(format!("http://{address}"))
}

/// Asks the model, and waits for the begin of its answer.
async fn begin(server: &ModelServer, prompt: &Prompt, model: &str) -> Result<Incoming, Refusal> {
    let messages = [Message {
        role: Role::User,
        content: prompt.text.clone(),
    }];
    let request = post(&base_url(server)?, &ChatRequest::new(model, &messages));
    let request = request.map_err(|error| server_failed(&error.to_string()))?;
    let sent = server.client.forward(request).await;
    let answer = sent.map_err(|error| call_failed(&error))?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    Ok(answer.into_body())
}

fn post(base: &str, request: &ChatRequest<'_>) -> io::Result<http::Request<CallBody>> {
    let body = Full::new(Bytes::from(serde_json::to_vec(request)?));
    http::Request::post(format!("{base}{}", chat::PATH))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "text/event-stream")
        .body(
            body.map_err(|never: Infallible| match never {})
                .boxed_unsync(),
        )
        .map_err(io::Error::other)
}

/// Reason that a model server gives for an answer that is not a success.
async fn refusal(answer: http::Response<Incoming>) -> Refusal {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ERROR_BYTES)
        .collect()
        .await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let text = error_of(&body).unwrap_or_else(|| format!("it answered {status}"));
    let text = clean_prefix(&text, MAX_SHOWN_BYTES);
    match status {
        StatusCode::NOT_FOUND => Refusal::Failed(JobErrorKind::ModelNotFound, text),
        StatusCode::TOO_MANY_REQUESTS => server_failed(&text),
        status if status.is_client_error() => Refusal::Rejected(text),
        _ => server_failed(&text),
    }
}

/// Reads the events of an answer, and sends its text on.
async fn read(
    mut body: Incoming,
    inference: &mut JobInference,
    outputs: &Sender<Output>,
) -> Result<(), Refusal> {
    let (mut bytes, mut is_finished) = (BytesMut::new(), false);
    let mut tokens = Tokens {
        inference,
        is_counted: false,
    };
    // Bytes without an end of a line, which are not looked through again.
    let mut searched = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| server_failed(&error.to_string()))?;
        bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        while let Some(at) = bytes[searched..].iter().position(|byte| *byte == b'\n') {
            let line = bytes.split_to(searched + at + 1);
            searched = 0;
            let Some(data) = data_of(&line) else { continue };
            let chunk = match Event::parse(&data) {
                Event::Chunk(chunk) => chunk,
                Event::Done => return Ok(()),
                Event::Failed(reason) => return Err(server_failed(&reason)),
            };
            is_finished |= chunk.finish_reason.is_some();
            send(chunk, &mut tokens, outputs).await?;
        }
        searched = bytes.len();
        if searched > MAX_EVENT_BYTES {
            return Err(server_failed("it sent an event longer than 1 MiB"));
        }
    }
    // Some servers end without the last event.
    match is_finished {
        true => Ok(()),
        false => Err(server_failed("its answer broke off")),
    }
}

/// Data of a line of an event; `None` for other lines. An event has its data in one line.
fn data_of(line: &[u8]) -> Option<String> {
    let data = line.strip_prefix(b"data:")?;
    Some(String::from_utf8_lossy(data).trim().to_owned())
}

/// Tokens of an answer that arrives.
struct Tokens<'a> {
    inference: &'a mut JobInference,
    /// Whether the model server has counted those of the answer.
    is_counted: bool,
}

impl Tokens<'_> {
    /// Counts an event. The server's counts come last, and not at all where the answer is stopped: until then its parts
    /// stand for its tokens. Most servers send one for each token.
    fn count(&mut self, chunk: &Chunk) {
        let usage = chunk.usage.unwrap_or_default();
        let inference = &mut *self.inference;
        inference.prompt_tokens = inference.prompt_tokens.max(usage.prompt_tokens);
        if usage.completion_tokens > 0 {
            self.is_counted = true;
            inference.completion_tokens = usage.completion_tokens;
        } else if !self.is_counted {
            inference.completion_tokens += chunk.parts.len() as u64;
        }
    }
}

async fn send(
    chunk: Chunk,
    tokens: &mut Tokens<'_>,
    outputs: &Sender<Output>,
) -> Result<(), Refusal> {
    tokens.count(&chunk);
    for part in chunk.parts {
        // Thoughts of a model are no part of its answer.
        if let Part::Text(text) = part {
            let sent = outputs.send((Stream::Stdout, text)).await;
            // The receiver is gone where the log can't be written, which is then the reason of the end.
            sent.map_err(|_| server_failed("its answer can't be kept"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
