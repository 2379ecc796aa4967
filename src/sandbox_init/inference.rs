//! Listeners for calls of models, in a sandbox that may use them.
//!
//! Init opens them before the command starts, and hands them over to the shim: a socket belongs to the network namespace
//! in which it was made, whoever holds it. So the worker accepts and answers the sandbox's connections itself. No byte
//! of a call passes init, no path of the node is mounted into the sandbox, and a command that attacks them meets the
//! worker's HTTP server and nothing else.

use super::take_descriptor;
use std::{
    fs::{Permissions, set_permissions},
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
};

/// Port on loopback: the one of Ollama, which its clients expect.
pub const PORT: u16 = 11434;
/// Directory of the Unix socket, a file system of its own, since an image's user may not write to `/run`.
pub const DIRECTORY: &str = "/run/cynode";
/// Path of the Unix socket.
pub const SOCKET: &str = "/run/cynode/inference-proxy.sock";
/// Largest number of listeners that are handed over.
pub const MAX_LISTENERS: usize = 3;
/// Descriptor of the socket over which they are handed over.
const CHANNEL: RawFd = 6;

/// Opens the listeners and hands them over: the Unix socket first, then those on loopback.
pub(super) fn open() -> io::Result<()> {
    let channel = take_descriptor(CHANNEL)?;
    let socket = UnixListener::bind(SOCKET)?;
    set_permissions(SOCKET, Permissions::from_mode(0o666))?;
    let mut listeners: Vec<OwnedFd> = vec![
        socket.into(),
        TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?.into(),
    ];
    // Some programs take `localhost` for this one; a host may have no IPv6.
    if let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, PORT)) {
        listeners.push(listener.into());
    }
    send(&channel, &listeners)
}

/// Room for a control message with the descriptors of all listeners, aligned as the kernel expects it.
#[repr(C)]
union ControlBuffer {
    _header: libc::cmsghdr,
    bytes: [u8; 64],
}

fn send(channel: &OwnedFd, listeners: &[OwnedFd]) -> io::Result<()> {
    let numbers: Vec<RawFd> = listeners.iter().map(|fd| fd.as_raw_fd()).collect();
    let length = u32::try_from(size_of_val(&numbers[..])).map_err(io::Error::other)?;
    let mut byte = [0_u8];
    let mut content = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: byte.len(),
    };
    let mut control = ControlBuffer { bytes: [0; 64] };
    // SAFETY: all zeroes are a message without parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut content;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: computes a size.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as _;
    if message.msg_controllen as usize > size_of::<ControlBuffer>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the buffer is aligned for a header and holds it and the numbers, as was just checked; all of the message
    // outlives the call.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        let data = libc::CMSG_DATA(header);
        std::ptr::copy_nonoverlapping(numbers.as_ptr().cast(), data, length as usize);
        libc::sendmsg(channel.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
