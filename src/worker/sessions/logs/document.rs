//! Output of an exec so far as one JSON document, written while it is read: a log of any size costs no memory.

use super::{ExecLogQuery, field_suffix};
use crate::{
    api::{
        ExecId,
        events::{
            JsonText, LogPart, LogRecord, OutputEncoding, RecordContent, Stream, StreamFilter,
            omission_line,
        },
        jobs::Truncated,
        sandboxes::exec::Exec,
        warning::Warning,
    },
    spool::ExecSpool,
    worker::{event_stream::EventQuery, ledger::Job, log_part::PartReader},
};
use bytes::Bytes;
use std::{io, path::PathBuf, sync::Arc};

/// Warning of a document whose rest could not be read.
const CUT_WARNING: &str = "the rest of the output can't be read at present; ask again";

/// The document, in pieces.
pub(super) fn open(
    job: Arc<Job>,
    exec: Exec,
    query: ExecLogQuery,
) -> impl futures_util::Stream<Item = Bytes> + Send {
    let document = Document {
        directory: ExecSpool::at(job.spool.path(), exec.exec_id)
            .path()
            .to_owned(),
        job,
        exec_id: exec.exec_id,
        query,
        truncated: Truncated::default(),
        warnings: Vec::new(),
        part: Part::Head,
    };
    futures_util::stream::unfold(document, Document::next)
}

/// Writer of one document.
struct Document {
    job: Arc<Job>,
    directory: PathBuf,
    exec_id: ExecId,
    query: ExecLogQuery,
    truncated: Truncated,
    warnings: Vec<Warning>,
    part: Part,
}

/// Part of a document that is written next.
enum Part {
    Head,
    Content(Stream, Box<(PartReader, JsonText)>),
    Between,
    Foot,
    End,
}

impl Document {
    /// The next piece, which may be empty, and the writer of the rest.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        let suffix = field_suffix(self.query.events.encoding);
        let piece = match std::mem::replace(&mut self.part, Part::End) {
            Part::Head => {
                self.part = self.content(Stream::Stdout);
                format!("{{\"exec_id\":\"{}\",\"stdout{suffix}\":\"", self.exec_id)
            }
            Part::Content(stream, source) => self.write(stream, source).await,
            Part::Between => {
                self.part = self.content(Stream::Stderr);
                format!("\",\"stderr{suffix}\":\"")
            }
            Part::Foot => self.foot(),
            Part::End => return None,
        };
        Some((piece.into(), self))
    }

    fn content(&self, stream: Stream) -> Part {
        let EventQuery { part, encoding, .. } = self.query.events;
        if !part.streams.has(stream) {
            return behind(stream);
        }
        // The last lines are counted over both streams, so that both have to be read.
        let streams = match part.tail {
            Some(_) => part.streams,
            None => StreamFilter::Only(stream),
        };
        let query = EventQuery {
            after: 0,
            part: LogPart { streams, ..part },
            ..self.query.events
        };
        let reader = PartReader::new(self.directory.clone(), query);
        let text = JsonText::new(encoding, self.query.timestamps);
        Part::Content(stream, Box::new((reader, text)))
    }

    /// Writes the next piece of a stream.
    async fn write(&mut self, stream: Stream, source: Box<(PartReader, JsonText)>) -> String {
        let (mut reader, mut text) = *source;
        let read = self.job.with_spool(move |_| {
            let records = reader.read()?;
            io::Result::Ok((reader, records))
        });
        match read.await.flatten() {
            Ok((reader, Some(records))) => {
                let mut piece = String::new();
                for record in records {
                    piece.extend(self.render(stream, record, &mut text));
                }
                self.part = Part::Content(stream, Box::new((reader, text)));
                piece
            }
            Ok((_, None)) => {
                self.part = behind(stream);
                text.finish()
            }
            Err(error) => {
                tracing::error!(exec = %self.exec_id, %error, "log of an exec unreadable");
                self.warnings.push(Warning {
                    field: name(stream).to_owned(),
                    detail: CUT_WARNING.to_owned(),
                });
                self.part = behind(stream);
                text.finish()
            }
        }
    }

    fn render(&mut self, wanted: Stream, record: LogRecord, text: &mut JsonText) -> Option<String> {
        let encoding = self.query.events.encoding;
        match record.content {
            RecordContent::Output(chunk) if chunk.stream == wanted => {
                let bytes = match encoding {
                    OutputEncoding::Text => chunk.text().into_bytes(),
                    OutputEncoding::Base64 => chunk.bytes,
                };
                text.write(bytes, record.time)
            }
            RecordContent::Gap { stream, bytes } if stream == wanted => {
                match stream {
                    Stream::Stdout => self.truncated.stdout = true,
                    Stream::Stderr => self.truncated.stderr = true,
                }
                match encoding {
                    OutputEncoding::Text => text.write(omission_line(bytes).into_bytes(), None),
                    OutputEncoding::Base64 => None,
                }
            }
            _ => None,
        }
    }

    fn foot(&self) -> String {
        let mut foot = "\"".to_owned();
        let mut add = |name: &str, value: serde_json::Result<String>| {
            foot.push_str(&format!(",\"{name}\":{}", value.unwrap_or_default()));
        };
        if self.truncated.stdout || self.truncated.stderr {
            add("truncated", serde_json::to_string(&self.truncated));
        }
        if !self.warnings.is_empty() {
            add("warnings", serde_json::to_string(&self.warnings));
        }
        foot.push('}');
        foot
    }
}

/// Part of a document behind the content of a stream.
fn behind(stream: Stream) -> Part {
    match stream {
        Stream::Stdout => Part::Between,
        Stream::Stderr => Part::Foot,
    }
}

const fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}
