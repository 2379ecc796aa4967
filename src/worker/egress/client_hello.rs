//! First message of a TLS client (RFC 8446, section 4.1.2), as far as it names the server (RFC 6066, section 3). Pure.
//!
//! A job that may reach one host of a large network must not reach its neighbours there by another name in TLS. So a
//! tunnel to port 443 begins with a client hello that names the host of the tunnel. With an encrypted hello (ECH) the
//! outer name counts: it is what the network sees, and only a server that knows both names can tell them apart. A name
//! in a later hello of the same connection is not read: a server must not take it for another (RFC 8446, 4.1.4).

use crate::api::egress::HostName;

/// Most bytes that are read for a hello, in records of any length.
pub(super) const MAX_HELLO_BYTES: usize = 16 * 1024;
/// Type of records that carry the handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// Longest content of a record.
const MAX_RECORD_BYTES: usize = 1 << 14;
/// Type of the message.
const CLIENT_HELLO: u8 = 1;
/// Extension that names the server.
const SERVER_NAME: u16 = 0;
/// Type of a name that is a host's.
const HOST_NAME: u8 = 0;

/// Reason for which the begin of a connection is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HelloFault {
    /// The bytes are no TLS client's.
    NotTls,
    /// The message breaks its own rules.
    Malformed,
    /// The message is longer than is read.
    TooLong,
    /// It names no server.
    NoName,
    /// It names another server.
    OtherName,
    /// It did not come in time, or the connection ended.
    Missing,
}

/// Checks that `bytes` begin with a hello that names `host`: `None` while there is too little of it.
pub(super) fn check(bytes: &[u8], host: &HostName) -> Result<Option<()>, HelloFault> {
    let Some(hello) = message(bytes)? else {
        return match bytes.len() < MAX_HELLO_BYTES {
            true => Ok(None),
            false => Err(HelloFault::TooLong),
        };
    };
    let name = server_name(&hello)?.ok_or(HelloFault::NoName)?;
    match name.eq_ignore_ascii_case(host.as_str().as_bytes()) {
        true => Ok(Some(())),
        false => Err(HelloFault::OtherName),
    }
}

/// Content of the hello, put together from its records; `None` while some of it is missing.
fn message(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, HelloFault> {
    let mut content = Vec::new();
    loop {
        if bytes.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD)
            || bytes.get(1).is_some_and(|major| *major != 3)
        {
            return Err(HelloFault::NotTls);
        }
        let Some((&[_, _, _, high, low], rest)) = bytes.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > MAX_RECORD_BYTES {
            return Err(HelloFault::Malformed);
        }
        let there = length.min(rest.len());
        content.extend_from_slice(&rest[..there]);
        if content.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(HelloFault::NotTls);
        }
        if let Some((&[_, a, b, c], hello)) = content.split_first_chunk::<4>() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MAX_HELLO_BYTES {
                return Err(HelloFault::TooLong);
            }
            if let Some(hello) = hello.get(..length) {
                return Ok(Some(hello.to_vec()));
            }
        }
        if there < length {
            return Ok(None);
        }
        bytes = &rest[length..];
    }
}

/// Name of the server in a hello; `None` where there is none.
fn server_name(hello: &[u8]) -> Result<Option<&[u8]>, HelloFault> {
    let malformed = HelloFault::Malformed;
    let mut rest = Reader(hello);
    // Version and random.
    rest.take(2 + 32).ok_or(malformed)?;
    // Session id, cipher suites, compression methods.
    rest.vector(1).ok_or(malformed)?;
    rest.vector(2).ok_or(malformed)?;
    rest.vector(1).ok_or(malformed)?;
    if rest.0.is_empty() {
        // A client of before extensions.
        return Ok(None);
    }
    let mut extensions = Reader(rest.vector(2).ok_or(malformed)?);
    if !rest.0.is_empty() {
        return Err(malformed);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2).ok_or(malformed)?;
        let content = extensions.vector(2).ok_or(malformed)?;
        if kind == usize::from(SERVER_NAME) {
            let found = host_name(content).ok_or(malformed)?;
            // Of two, a server might take the other one.
            if name.replace(found).is_some() {
                return Err(malformed);
            }
        }
    }
    Ok(name)
}

/// The one name in the extension; `None` where there is not exactly one.
fn host_name(extension: &[u8]) -> Option<&[u8]> {
    let mut extension = Reader(extension);
    let mut names = Reader(extension.vector(2)?);
    let kind = names.number(1)?;
    let name = names.vector(2)?;
    let is_whole = extension.0.is_empty() && names.0.is_empty();
    (is_whole && kind == usize::from(HOST_NAME) && !name.is_empty()).then_some(name)
}

/// Bytes that were not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Number of so many bytes.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?;
        let digits = taken.iter();
        Some(digits.fold(0, |number, byte| (number << 8) | usize::from(*byte)))
    }

    /// Bytes after their count, which has so many bytes itself.
    fn vector(&mut self, count_bytes: usize) -> Option<&'a [u8]> {
        let count = self.number(count_bytes)?;
        self.take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider;
    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
    use std::sync::Arc;

    /// Hello of a real client.
    fn hello(name: &str, has_sni: bool) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.enable_sni = has_sni;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of at most so many bytes.
    fn fragmented(hello: &[u8], most: usize) -> Vec<u8> {
        let records = hello[5..].chunks(most);
        let record = |content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap().to_be_bytes();
            [&[22, 3, 1][..], &length, content].concat()
        };
        records.flat_map(record).collect()
    }

    fn checked(bytes: &[u8], host: &str) -> Result<Option<()>, HelloFault> {
        check(bytes, &host.parse().unwrap())
    }

    #[test]
    fn name_of_a_real_client_is_found() {
        let bytes = hello("api.example.com", true);
        assert_eq!(checked(&bytes, "api.example.com"), Ok(Some(())));
        assert_eq!(checked(&bytes, "API.Example.com"), Ok(Some(())));
        let other = Err(HelloFault::OtherName);
        for host in [
            "example.com",
            "api.example.co",
            "api.example.com.evil.example",
        ] {
            assert_eq!(checked(&bytes, host), other, "{host}");
        }
        for most in [1, 7, 100] {
            let bytes = fragmented(&bytes, most);
            assert_eq!(checked(&bytes, "api.example.com"), Ok(Some(())), "{most}");
        }
        let bytes = hello("api.example.com", false);
        assert_eq!(checked(&bytes, "api.example.com"), Err(HelloFault::NoName));
    }

    #[test]
    fn other_protocols_are_no_hello() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-OpenSSH",
            b"PRI * HTTP/2.0",
            b"\x80\x2e\x01\x03\x01",
            b"\x15\x03\x01\x00\x02\x02\x28",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        ] {
            assert_eq!(
                checked(bytes, "a.example"),
                Err(HelloFault::NotTls),
                "{bytes:?}"
            );
        }
        assert_eq!(
            checked(b"\x16\x03\x01\x00\x00", "a.example"),
            Err(HelloFault::Malformed)
        );
    }

    #[test]
    fn endless_hello_is_too_long() {
        let long = [&b"\x16\x03\x01\x00\x04\x01\x00\xff\xff"[..], &[0; 100]].concat();
        assert_eq!(checked(&long, "a.example"), Err(HelloFault::TooLong));
        // Each record brings one byte: the records are longer than the message.
        let hello = [&[1, 0, 0x3f, 0xff][..], &[0; 0x2000]].concat();
        let bytes = fragmented(&[&[0; 5][..], &hello].concat(), 1);
        assert_eq!(checked(&bytes, "a.example"), Err(HelloFault::TooLong));
    }

    #[test]
    fn two_names_are_refused() {
        let name = |name: &[u8]| [&[0, 0, u8::try_from(name.len()).unwrap()][..], name].concat();
        let list = |names: &[u8]| [&[0, u8::try_from(names.len()).unwrap()][..], names].concat();
        let one = list(&name(b"a.example"));
        assert_eq!(host_name(&one), Some(&b"a.example"[..]));
        let two = list(&[name(b"a.example"), name(b"b.example")].concat());
        assert_eq!(host_name(&two), None);
        assert_eq!(host_name(&list(&name(b""))), None);
        assert_eq!(host_name(&[one, vec![0]].concat()), None);
    }

    proptest! {
        #[test]
        fn every_prefix_is_incomplete(at in any::<prop::sample::Index>(), most in 1_usize..300) {
            let bytes = fragmented(&hello("api.example.com", true), most);
            let prefix = &bytes[..at.index(bytes.len())];
            prop_assert_eq!(checked(prefix, "api.example.com"), Ok(None));
        }

        #[test]
        fn damaged_hello_never_panics(
            at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = hello("api.example.com", true);
            let (at, cut) = (at.index(bytes.len()), cut.index(bytes.len()));
            bytes[at] = byte;
            let _ = checked(&bytes[..cut], "api.example.com");
            let _ = server_name(&bytes[cut..]);
        }
    }
}
