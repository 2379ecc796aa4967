//! Slugs, labels, models, variables and URLs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oracles::names;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    names::name(&text);
    names::url(&text);
});
