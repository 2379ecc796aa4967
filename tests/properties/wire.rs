//! Messages between a sandbox's shim and its init.

use crate::oracles::wire;
use cynode::sandbox_init::wire::{ExecNumber, ExecSpec, InitRequest};
use proptest::prelude::*;
use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

fn text() -> impl Strategy<Value = OsString> {
    proptest::collection::vec(any::<u8>(), 0..20).prop_map(OsString::from_vec)
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let command = proptest::collection::vec(text(), 0..4);
    let env = proptest::collection::vec((text(), text()), 0..4);
    (command, env, any::<[bool; 3]>()).prop_map(|(command, env, flags)| {
        let [has_stdin, has_inference, has_egress] = flags;
        let spec = ExecSpec {
            command,
            env,
            has_stdin,
            has_inference,
            has_egress,
            ..ExecSpec::default()
        };
        spec.encode(ExecNumber::FIRST)
    })
}

/// A message of this type with this payload.
fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 1, 0, 0, 0];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes
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
    fn text_count_costs_only_present_texts(count: u32, length in 4usize..64) {
        let mut payload = count.to_le_bytes().to_vec();
        payload.resize(length, 0);
        wire::request(&message(1, &payload));
    }

    #[test]
    fn reports_decode_as_encoded(
        kind in 0u8..9,
        payload in proptest::collection::vec(any::<u8>(), 0..8),
        junk in proptest::collection::vec(any::<u8>(), 0..12),
    ) {
        wire::reports(&message(kind, &payload));
        wire::reports(&junk);
    }
}

#[test]
fn oversized_request_is_refused_unread() {
    let mut header = message(1, &[]);
    header[5..].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = InitRequest::read(&mut header.as_slice()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    wire::request(&header);
}
