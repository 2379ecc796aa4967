//! Requests to the init of a sandbox, and its reports.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oracles::wire;

fuzz_target!(|data: &[u8]| {
    wire::request(data);
    wire::reports(data);
});
