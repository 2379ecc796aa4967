//! Query strings, ids and places in a stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oracles::queries;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    queries::query(&text);
    queries::id(&text);
    queries::place(&text);
});
