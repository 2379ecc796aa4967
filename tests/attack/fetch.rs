//! A client of HTTPS that finds its proxy and its authorities by variables, as most programs do.

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};

/// Asks a host for a path with a header, over TLS with a server of this name; the status of the answer and its body.
pub(super) fn fetch(target: &str, name: &str, path: &str, header: &str) -> io::Result<String> {
    let proxy = env::var("HTTPS_PROXY").map_err(io::Error::other)?;
    let mut socket = TcpStream::connect(proxy.trim_start_matches("http://"))?;
    write!(
        socket,
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(io::Error::other("no tunnel"));
    }
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let client = ClientConnection::new(Arc::new(config()?), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(client, socket);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {target}\r\n{header}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer)
        && answer.is_empty()
    {
        return Err(error);
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok(format!("{status} {body}"))
}

/// Trust in the authorities that a variable names, alone.
fn config() -> io::Result<ClientConfig> {
    let file = env::var("SSL_CERT_FILE").map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&fs::read(file)?) {
        let certificate = certificate.map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
