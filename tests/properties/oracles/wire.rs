//! What the node and the init of a sandbox say to each other.

use cynode::sandbox_init::wire::{INSPECT, InitRequest, REPORT_BYTES, Report};
use std::io::ErrorKind;

/// A request that is read was written just so, and nothing of it is made up.
pub fn request(bytes: &[u8]) {
    let mut rest = bytes;
    match InitRequest::read(&mut rest) {
        Ok(InitRequest::Inspect) => assert!(bytes.starts_with(&INSPECT)),
        Ok(InitRequest::Run(request)) => {
            let read = &bytes[..bytes.len() - rest.len()];
            assert_eq!(request.encode(), read);
            let env = request.env.iter().flat_map(|(name, value)| [name, value]);
            let texts: usize = request
                .command
                .iter()
                .chain(env)
                .map(|text| text.len())
                .sum();
            assert!(texts < read.len());
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

/// A report that is read is one that can be written.
pub fn report(bytes: [u8; REPORT_BYTES]) {
    if let Some(report) = Report::decode(bytes) {
        let written = report.encode();
        assert_eq!(written[0], bytes[0]);
        assert_eq!(Report::decode(written), Some(report));
        assert!(written == bytes || matches!(report, Report::Ready(_) | Report::Started));
    }
}
