//! Lines of events from a node; and the same bytes as what a job prints.

#![no_main]

use cynode::api::events::{Utf8Decoder, OutputLog, Stream};
use libfuzzer_sys::fuzz_target;
use oracles::events;

fuzz_target!(|data: &[u8]| {
    events::stream(data);
    let mut log = OutputLog::default();
    let mut decoder = Utf8Decoder::default();
    for piece in data.chunks(3) {
        events::print(&mut log, Stream::Stdout, &decoder.decode(piece));
    }
    events::print(&mut log, Stream::Stdout, decoder.finish());
    assert_eq!(log.text(Stream::Stdout), String::from_utf8_lossy(data));
    events::kept(&log);
});
