//! A job without a sandbox: the model server of this machine answers a prompt, and the answer is the job's stdout.
//!
//! Like any job it has a slot, a log and a time limit, and is canceled by its orchestrator. It has no shim, so it ends
//! with this process: the next start finds it lost, and the orchestrator gives it another attempt.

use super::{
    context::WorkerContext,
    inference::ModelServer,
    job_shim,
    job_stop::stop_requested,
    ledger::Job,
    prepare::{acquire_slot, engine_error},
};
use crate::{
    api::{
        events::Stream,
        jobs::{JobErrorKind, JobInference, Outcome, Prompt},
        nodes::check_model,
    },
    http::client::CallBody,
    inference::chat::{self, ChatRequest, Chunk, Event, Message, Part, Role, error_of},
    spool::{JobEnd, JobRecorder, Spool},
    text::clean_prefix,
};
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Parts of an answer that wait for the log.
const MAX_WAITING_PARTS: usize = 64;
/// Longest event of an answer, in bytes.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Longest error of a model server that is read, and that is shown, in bytes.
const MAX_ERROR_BYTES: usize = 64 * 1024;
const MAX_SHOWN_BYTES: usize = 4096;

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
    let limited = async {
        let work = tokio::time::timeout(Duration::from_secs(seconds), run(ctx, job, prompt));
        work.await
            .unwrap_or_else(|_| JobEnd::stopped(Outcome::Timeout))
    };
    tokio::select! {
        end = limited => end,
        request = stop_requested(job, None) => job_shim::stopped(request.reason),
    }
}

async fn run(ctx: &WorkerContext, job: &Arc<Job>, prompt: &Prompt) -> JobEnd {
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
        ask(&ctx.model_server, prompt, sender),
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

/// Asks the model, and sends on what it answers. The connection closes when this is dropped, which ends the answer.
async fn ask(server: &ModelServer, prompt: &Prompt, outputs: Sender<Output>) -> JobEnd {
    let mut inference = JobInference {
        model: prompt.model.clone().unwrap_or_default(),
        prompt_tokens: 0,
        completion_tokens: 0,
    };
    let end = match try_ask(server, prompt, &mut inference, &outputs).await {
        Ok(()) => JobEnd::exited(0),
        Err(Refusal::Rejected(reason)) => {
            // As a command would: the reason on stderr, and another exit code. Without a log nobody reads it.
            let _ = outputs.send((Stream::Stderr, format!("{reason}\n"))).await;
            JobEnd::exited(1)
        }
        Err(Refusal::Failed(kind, reason)) => JobEnd::failed(kind, reason),
    };
    let is_named = !inference.model.is_empty();
    JobEnd {
        inference: is_named.then_some(inference),
        ..end
    }
}

/// Reason for which there is no answer, or none to its end.
enum Refusal {
    /// The model server does not accept the prompt; another one would not, either.
    Rejected(String),
    Failed(JobErrorKind, String),
}

fn server_failed(reason: &str) -> Refusal {
    let reason = clean_prefix(reason, MAX_SHOWN_BYTES);
    let message = format!("the model server of this node failed: {reason}");
    Refusal::Failed(JobErrorKind::ModelServerFailed, message)
}

async fn try_ask(
    server: &ModelServer,
    prompt: &Prompt,
    inference: &mut JobInference,
    outputs: &Sender<Output>,
) -> Result<(), Refusal> {
    let address = server.address();
    let address = address.ok_or_else(|| server_failed("there is none at present"))?;
    let base = format!("http://{address}");
    if inference.model.is_empty() {
        inference.model = default_model(server, &base).await?;
    }
    let messages = [Message {
        role: Role::User,
        content: prompt.text.clone(),
    }];
    let request = post(&base, &ChatRequest::new(&inference.model, &messages));
    let request = request.map_err(|error| server_failed(&error.to_string()))?;
    let sent = server.client.forward(request).await;
    let answer = sent.map_err(|error| server_failed(&error.to_string()))?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    read(answer.into_body(), inference, outputs).await
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
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| server_failed(&error.to_string()))?;
        bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
        while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = bytes.split_to(at + 1);
            let Some(data) = data_of(&line) else { continue };
            let chunk = match Event::parse(&data) {
                Event::Chunk(chunk) => chunk,
                Event::Done => return Ok(()),
                Event::Failed(reason) => return Err(server_failed(&reason)),
            };
            is_finished |= chunk.finish_reason.is_some();
            send(chunk, inference, outputs).await?;
        }
        if bytes.len() > MAX_EVENT_BYTES {
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

async fn send(
    chunk: Chunk,
    inference: &mut JobInference,
    outputs: &Sender<Output>,
) -> Result<(), Refusal> {
    if let Some(usage) = chunk.usage {
        inference.prompt_tokens = usage.prompt_tokens;
        inference.completion_tokens = usage.completion_tokens;
    }
    for part in chunk.parts {
        // What a model thinks is no part of its answer.
        if let Part::Text(text) = part {
            let sent = outputs.send((Stream::Stdout, text)).await;
            // The receiver is gone where the log can't be written, which is then the reason of the end.
            sent.map_err(|_| server_failed("its answer can't be kept"))?;
        }
    }
    Ok(())
}

/// Model that answers soonest: one that is loaded, else the first by name.
async fn default_model(server: &ModelServer, base: &str) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        id: String,
    }
    #[derive(Deserialize)]
    struct LoadedList {
        models: Vec<Loaded>,
    }
    #[derive(Deserialize)]
    struct Loaded {
        name: String,
    }
    let call = |path: &str| server.client.call(Method::GET, format!("{base}{path}"));
    // A server of another kind can't tell; any model will do then.
    let loaded: Result<LoadedList, _> = call("/api/ps").receive().await;
    let loaded = loaded.ok().map(|list| list.models).unwrap_or_default();
    let mut loaded = loaded.into_iter().map(|model| model.name);
    if let Some(model) = loaded.find(can_be_named) {
        return Ok(model);
    }
    let list: List = call("/v1/models")
        .receive()
        .await
        .map_err(|error| server_failed(&error.to_string()))?;
    let all = list.data.into_iter().map(|model| model.id);
    let first = all.filter(can_be_named).min();
    first.ok_or_else(|| {
        let text = "this node has no model; an admin adds one with: cynode models pull MODEL";
        Refusal::Failed(JobErrorKind::ModelNotFound, text.to_owned())
    })
}

/// Whether a task could also ask for the model by its name.
fn can_be_named(model: &String) -> bool {
    check_model("", model).is_ok()
}

#[cfg(test)]
mod tests;
