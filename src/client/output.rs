//! Output of a job, on our own stdout and stderr: byte for byte, so that `cynode run -- cat FILE > FILE` makes a copy; on
//! a terminal as text.

use crate::{
    api::{
        events::{Stream, Utf8Decoder},
        time::Time,
    },
    exit::Failure,
    terminal::{to_stdout, write_failure},
};
use std::io::{self, IsTerminal as _, Write as _};

/// Printer of the output of one job.
pub(super) struct OutputPrinter {
    timestamps: bool,
    streams: [StreamPrinter; 2],
}

struct StreamPrinter {
    /// Decoder for a terminal, which can show only text.
    decoder: Option<Utf8Decoder>,
    is_line_start: bool,
    has_printed: bool,
}

impl OutputPrinter {
    /// Printer that begins each line with its time if asked to.
    pub(super) fn new(timestamps: bool) -> Self {
        let printer = |is_terminal: bool| StreamPrinter {
            decoder: is_terminal.then(Utf8Decoder::default),
            is_line_start: true,
            has_printed: false,
        };
        Self {
            timestamps,
            streams: [
                printer(io::stdout().is_terminal()),
                printer(io::stderr().is_terminal()),
            ],
        }
    }

    /// Whether anything was printed.
    pub(super) fn has_printed(&self) -> bool {
        self.streams.iter().any(|stream| stream.has_printed)
    }

    /// Prints the next bytes of a stream, which were printed at this time.
    pub(super) fn print(
        &mut self,
        stream: Stream,
        bytes: &[u8],
        time: Option<Time>,
    ) -> Result<(), Failure> {
        let printer = &mut self.streams[stream as usize];
        let bytes = printer.render(bytes, time.filter(|_| self.timestamps));
        match stream {
            Stream::Stdout => to_stdout(|out| out.write_all(&bytes)),
            Stream::Stderr => io::stderr().lock().write_all(&bytes).map_err(write_failure),
        }
    }
}

impl StreamPrinter {
    fn render(&mut self, bytes: &[u8], time: Option<Time>) -> Vec<u8> {
        self.has_printed |= !bytes.is_empty();
        let bytes = match &mut self.decoder {
            Some(decoder) => decoder.decode(bytes).into_bytes(),
            None => bytes.to_vec(),
        };
        let Some(time) = time else { return bytes };
        let mut prefixed = Vec::with_capacity(2 * bytes.len());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.is_line_start {
                prefixed.extend(format!("{time} ").into_bytes());
            }
            prefixed.extend_from_slice(line);
            self.is_line_start = line.ends_with(b"\n");
        }
        prefixed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_terminal_gets_text() {
        let mut printer = StreamPrinter {
            decoder: None,
            is_line_start: true,
            has_printed: false,
        };
        assert_eq!(printer.render(b"\xFF\xC3", None), b"\xFF\xC3");
        printer.decoder = Some(Utf8Decoder::default());
        assert_eq!(printer.render(b"\xFF\xC3", None), "\u{FFFD}".as_bytes());
        assert_eq!(printer.render(b"\xA9", None), "é".as_bytes());
    }

    #[test]
    fn time_stands_at_start_of_line() {
        let mut printer = OutputPrinter::new(true);
        let printer = &mut printer.streams[0];
        printer.decoder = None;
        let time = Some(Time::from_millis(0));
        let prefix = "1970-01-01T00:00:00.000Z ";
        let lines = [printer.render(b"a\nb", time), printer.render(b"c\n", time)].concat();
        assert_eq!(
            String::from_utf8(lines).unwrap(),
            format!("{prefix}a\n{prefix}bc\n")
        );
    }
}
