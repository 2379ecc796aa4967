//! JSON bodies, each as the body of every call.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oracles::bodies;

fuzz_target!(|data: &[u8]| bodies::body(data));
