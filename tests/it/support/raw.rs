//! Connections below HTTP: from any address of loopback, with nothing sent that a test doesn't say.

use super::{Api, DEADLINE};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
};

/// A connection to a listener, on which nothing was sent yet and nothing is waited for longer than a test
/// may take. It comes from this address, which is one of 127.0.0.0/8.
pub(crate) fn connect_from(from: [u8; 4], api: &Api) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::from(from), 0)).unwrap();
    connect(&socket, &api.address().parse::<SocketAddr>().unwrap()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// The same from the usual address.
pub(crate) fn connect_to(api: &Api) -> TcpStream {
    connect_from([127, 0, 0, 1], api)
}

/// Sends this; what comes until the other side closes, or nothing where it was closed before.
pub(crate) fn exchange(mut stream: TcpStream, sent: &[u8]) -> String {
    // It may be refused before all was sent.
    let _ = stream.write_all(sent);
    rest(stream)
}

/// Everything received until the peer closes the connection.
pub(crate) fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it was not closed: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether the other side still holds a connection on which nothing comes.
pub(crate) fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = { stream }.read(&mut [0; 1]);
    stream.set_nonblocking(false).unwrap();
    matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}
