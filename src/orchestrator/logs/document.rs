//! Output of a task as one JSON document, written while it is read: a log of any size costs no memory.

use super::{
    AppState, COLLECT_TIMEOUT, LogQuery, NODE_ANSWER_TIMEOUT, NodeLogError, kept::KeptLog,
    limits::ReadPermit, open_events, stored_task, unreachable_node,
};
use crate::{
    api::{
        TaskId,
        error::ApiError,
        events::{
            JobEvent, JsonText, LogPart, LogRecord, OutputData, OutputEncoding, Stream,
            StreamFilter, omission_line,
        },
        jobs::Truncated,
        tasks::LogCursor,
        warning::Warning,
    },
    errors,
    orchestrator::{node_client::NodeEvents, task_watch::TaskState},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{FutureExt as _, stream::unfold};
use std::sync::Arc;
use tokio::{sync::mpsc, time::timeout};

/// Warning of a document whose rest could not be read.
const CUT_WARNING: &str = "the rest of the output can't be read at present; ask again";

/// Source of the output of one document.
enum Source {
    /// Node of the running attempt.
    Node(NodeEvents),
    Kept(KeptLog),
    /// No node runs the task yet.
    Nothing,
}

/// Writer of one document.
pub(super) struct Document {
    state: Arc<AppState>,
    task: TaskId,
    /// State of the task when the document was asked for.
    current: TaskState,
    query: LogQuery,
    truncated: Truncated,
    warnings: Vec<Warning>,
    _permit: ReadPermit,
}

impl Document {
    pub(super) fn new(
        state: &Arc<AppState>,
        task: TaskId,
        current: TaskState,
        query: LogQuery,
        permit: ReadPermit,
    ) -> Self {
        Self {
            state: Arc::clone(state),
            task,
            current,
            query,
            truncated: Truncated::default(),
            warnings: Vec::new(),
            _permit: permit,
        }
    }

    /// Opens the output, and returns the document as it is written. Fails where no output can be had at all.
    pub(super) async fn start(
        mut self,
    ) -> Result<impl futures_util::Stream<Item = Bytes> + Send, ApiError> {
        let first = if self.query.part.streams.has(Stream::Stdout) {
            Some(self.open(Stream::Stdout).await?)
        } else {
            None
        };
        let second = match first {
            None => Some(self.open(Stream::Stderr).await?),
            Some(_) => None,
        };
        let (sender, chunks) = mpsc::channel(2);
        let write = async move {
            // It fails where the reader is gone.
            let _ = self.write(first, second, &sender).await;
        };
        let writing = write.boxed().fuse();
        Ok(unfold(
            (writing, chunks),
            async |(mut writing, mut chunks)| {
                loop {
                    tokio::select! {
                        chunk = chunks.recv() => return chunk.map(|chunk| (chunk, (writing, chunks))),
                        () = &mut writing => {}
                    }
                }
            },
        ))
    }

    async fn write(
        &mut self,
        stdout: Option<Source>,
        stderr: Option<Source>,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), mpsc::error::SendError<Bytes>> {
        let suffix = match self.query.encoding {
            OutputEncoding::Text => "",
            OutputEncoding::Base64 => "_base64",
        };
        let head = format!("{{\"task_id\":\"{}\",\"stdout{suffix}\":\"", self.task);
        to.send(head.into()).await?;
        self.write_stream(Stream::Stdout, stdout, to).await?;
        to.send(format!("\",\"stderr{suffix}\":\"").into()).await?;
        self.write_stream(Stream::Stderr, stderr, to).await?;
        let mut end = "\"".to_owned();
        let mut add = |name: &str, value: Result<String, serde_json::Error>| {
            end.push_str(&format!(",\"{name}\":{}", value.unwrap_or_default()));
        };
        if self.truncated.stdout || self.truncated.stderr {
            add("truncated", serde_json::to_string(&self.truncated));
        }
        if !self.warnings.is_empty() {
            add("warnings", serde_json::to_string(&self.warnings));
        }
        end.push('}');
        to.send(end.into()).await
    }

    /// Writes the content of one field, of a source that may be open already.
    async fn write_stream(
        &mut self,
        stream: Stream,
        source: Option<Source>,
        to: &mpsc::Sender<Bytes>,
    ) -> Result<(), mpsc::error::SendError<Bytes>> {
        if !self.query.part.streams.has(stream) {
            return Ok(());
        }
        let source = match source {
            Some(source) => Ok(source),
            None => self.open(stream).await,
        };
        let mut source = match source {
            Ok(source) => source,
            Err(_) => {
                self.warn(stream, CUT_WARNING);
                return Ok(());
            }
        };
        let mut field = JsonText::new(self.query.encoding, self.query.timestamps);
        loop {
            let events = match timeout(COLLECT_TIMEOUT, source.read(self.query.encoding)).await {
                Ok(Ok(events)) if events.is_empty() => break,
                Ok(Ok(events)) => events,
                Ok(Err(())) | Err(_) => {
                    self.warn(stream, CUT_WARNING);
                    break;
                }
            };
            for event in events {
                if let Some(text) = self.render(stream, event, &mut field) {
                    to.send(text.into()).await?;
                }
            }
        }
        to.send(field.finish().into()).await
    }

    fn render(&mut self, wanted: Stream, event: JobEvent, field: &mut JsonText) -> Option<String> {
        let (stream, data, time) = match event {
            JobEvent::Stdout { data, time, .. } => (Stream::Stdout, data, time),
            JobEvent::Stderr { data, time, .. } => (Stream::Stderr, data, time),
            JobEvent::Gap { stream, bytes, .. } if stream == wanted => {
                self.mark_truncated(stream);
                return match self.query.encoding {
                    OutputEncoding::Text => field.write(omission_line(bytes).into_bytes(), None),
                    OutputEncoding::Base64 => None,
                };
            }
            _ => return None,
        };
        if stream != wanted {
            return None;
        }
        let bytes = match data {
            OutputData::Text(text) => text.into_bytes(),
            OutputData::Base64(text) => match STANDARD.decode(text) {
                Ok(bytes) => bytes,
                Err(_) => {
                    self.warn(
                        stream,
                        "the node sent a part that is not base64; it is left out",
                    );
                    return None;
                }
            },
        };
        field.write(bytes, time)
    }

    fn mark_truncated(&mut self, stream: Stream) {
        match stream {
            Stream::Stdout => self.truncated.stdout = true,
            Stream::Stderr => self.truncated.stderr = true,
        }
    }

    fn warn(&mut self, stream: Stream, detail: &str) {
        let field = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let warning = Warning {
            field: field.to_owned(),
            detail: detail.to_owned(),
        };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Source of a stream: the node while it runs the task, else what is kept.
    async fn open(&mut self, stream: Stream) -> Result<Source, ApiError> {
        let part = self.query.part;
        // The last lines are counted over both streams, so that both have to be read.
        let part = LogPart {
            streams: match part.tail {
                Some(_) => part.streams,
                None => StreamFilter::Only(stream),
            },
            ..part
        };
        if !self.current.status.is_final() {
            let Some(source) = self.current.source else {
                return Ok(Source::Nothing);
            };
            let query = LogQuery { part, ..self.query };
            let events = open_events(&self.state, source, 0, false, &query);
            match timeout(NODE_ANSWER_TIMEOUT, events).await {
                Ok(Ok(events)) => return Ok(Source::Node(events)),
                Ok(Err(NodeLogError::Store(error))) => return Err(error.into()),
                // Any reader of a silent node's output can cause it again and again, so it is no warning.
                Ok(Err(error)) => {
                    let error = errors::chain(&error);
                    tracing::debug!(
                        error,
                        "output of a running task can't be read from its node"
                    );
                }
                Err(_) => tracing::debug!("node of a running task does not answer a log reader"),
            }
            // The task may have ended meanwhile, and its node have forgotten it.
            if !stored_task(&self.state, self.task).await?.status.is_final() {
                return Err(unreachable_node().into());
            }
        }
        let kept = KeptLog::open(&self.state, self.task, part, LogCursor::default()).await?;
        if kept.truncated.stdout && self.query.part.streams.has(Stream::Stdout) {
            self.truncated.stdout = true;
        }
        if kept.truncated.stderr && self.query.part.streams.has(Stream::Stderr) {
            self.truncated.stderr = true;
        }
        if let Some(notice) = kept.notice {
            self.warn(stream, notice);
        }
        Ok(Source::Kept(kept))
    }
}

impl Source {
    /// The next events; none at the end.
    async fn read(&mut self, encoding: OutputEncoding) -> Result<Vec<JobEvent>, ()> {
        match self {
            Self::Nothing => Ok(Vec::new()),
            Self::Node(events) => match events.next().await {
                Ok(Some(JobEvent::Result(_)) | None) => Ok(Vec::new()),
                Ok(Some(event)) => Ok(vec![event]),
                Err(error) => {
                    let error = errors::chain(&error);
                    tracing::debug!(error, "output of a running task was cut off");
                    Err(())
                }
            },
            Self::Kept(kept) => loop {
                let records = kept.read().await.map_err(|error| {
                    let error = errors::chain(&error);
                    tracing::warn!(error, "kept log can't be read to its end");
                })?;
                let is_end = records.is_empty();
                let attempt = kept.attempt;
                let event = |record: LogRecord| record.into_event(attempt, encoding);
                let events: Vec<_> = records.into_iter().filter_map(event).collect();
                if is_end || !events.is_empty() {
                    return Ok(events);
                }
            },
        }
    }
}
