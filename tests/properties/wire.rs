//! The protocol between a shim and init.

use crate::oracles::wire;
use cynode::sandbox_init::wire::{ExecSpec, InitRequest};
use proptest::prelude::*;
use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

fn text() -> impl Strategy<Value = OsString> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(OsString::from_vec)
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let command = proptest::collection::vec(text(), 0..4);
    let env = proptest::collection::vec((text(), text()), 0..4);
    (command, env).prop_map(|(command, env)| ExecSpec { command, env }.encode())
}

proptest! {
    #[test]
    fn requests_decode_as_encoded(
        mut bytes in request(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |at| at.index(bytes.len())));
        wire::request(&bytes);
    }

    #[test]
    fn text_count_costs_only_present_texts(count: u32, length in 4u32..64) {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.resize(4 + length as usize, 0);
        wire::request(&bytes);
    }

    #[test]
    fn reports_decode_as_encoded(bytes: [u8; 5], letter in "[URSXKE]") {
        wire::report(bytes);
        let [_, a, b, c, d] = bytes;
        wire::report([letter.as_bytes()[0], a, b, c, d]);
    }
}

#[test]
fn huge_request_is_refused_unread() {
    let mut bytes = &u32::MAX.to_le_bytes()[..];
    assert!(InitRequest::read(&mut bytes).is_err());
    wire::request(&u32::MAX.to_le_bytes());
}
