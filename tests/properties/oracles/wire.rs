//! Messages between a sandbox's shim and its init.

use cynode::sandbox_init::wire::{HEADER_BYTES, InitRequest, take_report};
use std::io::ErrorKind;

/// A decoded request encodes to the same bytes.
pub fn request(bytes: &[u8]) {
    let mut rest = bytes;
    match InitRequest::read(&mut rest) {
        Ok((exec, InitRequest::Run(spec))) => {
            let read = &bytes[..bytes.len() - rest.len()];
            assert_eq!(spec.encode(exec), read);
            let env = spec.env.iter().flat_map(|(name, value)| [name, value]);
            let texts: usize = spec.command.iter().chain(env).map(|text| text.len()).sum();
            assert!(texts < read.len());
        }
        Ok((exec, request)) => {
            let header = &bytes[..HEADER_BYTES - 4];
            assert!(request.encode(exec).starts_with(header));
        }
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ),
            "{error}"
        ),
    }
}

/// Decoded reports encode to the same bytes, except those of unknown types, which are skipped.
pub fn reports(bytes: &[u8]) {
    let mut read = bytes.to_vec();
    while let Ok(Some((exec, report))) = take_report(&mut read) {
        let end = bytes.len() - read.len();
        assert!(bytes[..end].ends_with(&report.encode(exec)));
    }
    assert!(bytes.ends_with(&read));
}
