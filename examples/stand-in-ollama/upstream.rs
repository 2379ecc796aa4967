//! A real model server behind this one: it computes what OpenAI's and Anthropic's clients ask, and has no model lists
//! in Ollama's shape, which are answered here.

use super::http::{Out, Request};
use std::{
    io::{self, Write as _},
    net::TcpStream,
};

/// Passes a request on, and its answer back as it comes. The connection to the client ends with it.
pub(crate) fn pass(address: &str, request: &Request, out: &mut Out) -> io::Result<()> {
    let mut upstream = TcpStream::connect(address)?;
    upstream.set_nodelay(true)?;
    let head = format!(
        "{} {} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        request.method,
        request.path,
        request.body.len()
    );
    upstream.write_all(head.as_bytes())?;
    upstream.write_all(&request.body)?;
    io::copy(&mut upstream, &mut out.stream)?;
    Ok(())
}
