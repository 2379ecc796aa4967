//! Server-sent events of a stream.

use crate::exit::Failure;
use std::io::{self, BufRead as _, BufReader, Read as _};

/// Longest event, in bytes; far above the largest of the contract, a whole stream of a result.
const MAX_EVENT_BYTES: u64 = 4 * 1024 * 1024;

/// Event; without a name where the server gave it none.
pub(super) struct SseEvent {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) data: String,
}

/// Reader of a `text/event-stream`, by the rules of the WHATWG as far as the gateway and model servers use them.
pub(super) struct SseReader<R> {
    lines: BufReader<R>,
}

impl<R: io::Read> SseReader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self {
            lines: BufReader::new(stream),
        }
    }

    /// Next event; `None` at the end, and where the stream is interrupted.
    pub(super) fn next(&mut self) -> Result<Option<SseEvent>, Failure> {
        let mut event = SseEvent {
            id: String::new(),
            name: String::new(),
            data: String::new(),
        };
        let mut bytes_left = MAX_EVENT_BYTES;
        let mut line = Vec::new();
        loop {
            line.clear();
            let Ok(read) = (&mut self.lines)
                .take(bytes_left)
                .read_until(b'\n', &mut line)
            else {
                return Ok(None);
            };
            bytes_left -= read as u64;
            if !line.ends_with(b"\n") {
                if bytes_left == 0 {
                    return Err(Failure::internal(format!(
                        "the server sent an event longer than {MAX_EVENT_BYTES} bytes; check that this is a cynode orchestrator"
                    )));
                }
                return Ok(None);
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            if text.is_empty() {
                if event.name.is_empty() && event.data.is_empty() {
                    // A comment, which shows that the server is alive.
                    bytes_left = MAX_EVENT_BYTES;
                    continue;
                }
                return Ok(Some(event));
            }
            let (field, value) = text.split_once(':').unwrap_or((text, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => value.clone_into(&mut event.id),
                "event" => value.clone_into(&mut event.name),
                "data" => {
                    if !event.data.is_empty() {
                        event.data.push('\n');
                    }
                    event.data.push_str(value);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &[u8]) -> SseReader<&[u8]> {
        SseReader::new(text)
    }

    #[test]
    fn endless_event_is_bounded() {
        let size = usize::try_from(MAX_EVENT_BYTES).unwrap();
        let endless = vec![b'x'; size + 1];
        assert!(events(&endless).next().is_err());
        let many = b"data: x\n".repeat(size / 8 + 1);
        assert!(events(&many).next().is_err());
        assert!(events(b"data: x\n").next().unwrap().is_none(), "broken off");
        let mut alive = b": still here\n\n".repeat(size / 13);
        alive.extend_from_slice(b"id: 1-2\nevent: stdout\ndata: {}\n\n");
        assert_eq!(events(&alive).next().unwrap().unwrap().id, "1-2");
    }

    #[test]
    fn nameless_events_and_lines_of_data_are_read() {
        let mut events = events(b": wait\n\ndata: {\r\ndata:}\r\n\r\nevent: end\n\n");
        let event = events.next().unwrap().unwrap();
        assert_eq!((event.name.as_str(), event.data.as_str()), ("", "{\n}"));
        assert_eq!(events.next().unwrap().unwrap().name, "end");
        assert!(events.next().unwrap().is_none());
    }
}
