//! A reference of an image; each line below it is a pattern.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oracles::image;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (reference, patterns) = text.split_once('\n').unwrap_or((&text, ""));
    image::reference(reference);
    for pattern in patterns.lines() {
        image::pattern(reference, pattern);
    }
});
