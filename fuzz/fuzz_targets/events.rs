//! Lines of events from a node; and the same bytes as what a job prints.

#![no_main]

use cynode::api::events::{OutputLog, Stream};
use libfuzzer_sys::fuzz_target;
use oracles::events;

fuzz_target!(|data: &[u8]| {
    events::stream(data);
    let mut log = OutputLog::default();
    for piece in data.chunks(3) {
        log.push_bytes(Stream::Stdout, piece);
    }
    log.finish();
    assert_eq!(log.text(Stream::Stdout), String::from_utf8_lossy(data));
    events::kept(&log);
});
