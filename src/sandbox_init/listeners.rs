//! Listeners in a sandbox that may use models, or reach hosts through the proxy of its node.
//!
//! Init opens them before the command starts, and hands them over to the shim: a socket belongs to the network namespace
//! in which it was made, whoever holds it. So the worker accepts and answers the sandbox's connections itself. No byte
//! of a call passes init, no path of the node is mounted into the sandbox, and a command that attacks them meets the
//! worker's HTTP servers and nothing else.
//!
//! The handover is one message: the descriptors, and as its content one byte for each, which says of which
//! [kind](ListenerKind) it is. An earlier release sent a single zero: it knew models only, and sent the Unix socket
//! first.

use super::{take_descriptor, wire::ExecSpec};
use std::{
    borrow::Cow,
    env,
    ffi::OsStr,
    fs::{Permissions, set_permissions},
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
};

/// Port of models on loopback: the one of Ollama, which its clients expect.
pub const INFERENCE_PORT: u16 = 11434;
/// Directory of the Unix socket for models and of the [authorities](super::authority), a file system of its own, since an
/// image's user may not write to `/run`.
pub const RUNTIME_DIRECTORY: &str = "/run/cynode";
/// Path of that Unix socket.
pub const INFERENCE_SOCKET: &str = "/run/cynode/inference-proxy.sock";
/// Port of the proxy on loopback: the one that proxies usually have.
pub const EGRESS_PORT: u16 = 3128;
/// Options by which Java finds the proxy: it reads no variable of others.
pub const JAVA_OPTIONS: &str = "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=3128 -Dhttps.proxyHost=127.0.0.1 \
                                -Dhttps.proxyPort=3128 -Dhttp.nonProxyHosts=localhost|127.*|[::1]";
/// Largest number of listeners that are handed over.
pub const MAX_LISTENERS: usize = 5;
/// Descriptor of the socket over which they are handed over.
const CHANNEL: RawFd = 6;

/// Kind of a listener, by which its owner knows what to serve there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerKind {
    /// Unix socket for calls of models.
    InferenceUnix,
    /// Loopback, for calls of models.
    InferenceTcp,
    /// Loopback, for the proxy.
    EgressTcp,
}

impl ListenerKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::InferenceUnix, Self::InferenceTcp, Self::EgressTcp];

    /// Byte that stands for it in a handover; never 0, which an earlier release sent.
    pub const fn code(self) -> u8 {
        match self {
            Self::InferenceUnix => 1,
            Self::InferenceTcp => 2,
            Self::EgressTcp => 3,
        }
    }

    /// Kind of this byte; `None` for one that is unknown.
    pub fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// Opens the listeners that a command needs, and hands them over; does nothing where it needs none.
pub(super) fn open(spec: &ExecSpec) -> io::Result<()> {
    if !spec.has_inference && !spec.has_egress {
        return Ok(());
    }
    let channel = take_descriptor(CHANNEL)?;
    let mut listeners = Vec::new();
    if spec.has_inference {
        let socket = UnixListener::bind(INFERENCE_SOCKET)?;
        set_permissions(INFERENCE_SOCKET, Permissions::from_mode(0o666))?;
        listeners.push((ListenerKind::InferenceUnix, OwnedFd::from(socket)));
        open_loopback(ListenerKind::InferenceTcp, INFERENCE_PORT, &mut listeners)?;
    }
    if spec.has_egress {
        open_loopback(ListenerKind::EgressTcp, EGRESS_PORT, &mut listeners)?;
    }
    send(&channel, &listeners)
}

/// Opens a port on both addresses of loopback.
fn open_loopback(
    kind: ListenerKind,
    port: u16,
    listeners: &mut Vec<(ListenerKind, OwnedFd)>,
) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listeners.push((kind, listener.into()));
    // Some programs take `localhost` for this one; a host may have no IPv6.
    if let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        listeners.push((kind, listener.into()));
    }
    Ok(())
}

/// Value of a variable of a command. Java's options of the image stay, and those for the proxy come behind them.
pub(super) fn beside_images<'a>(name: &OsStr, value: &'a OsStr) -> Cow<'a, OsStr> {
    match env::var_os(name) {
        Some(mut own) if value == JAVA_OPTIONS => {
            own.push(" ");
            own.push(value);
            Cow::Owned(own)
        }
        _ => Cow::Borrowed(value),
    }
}

/// Room for a control message with the descriptors of all listeners, aligned as the kernel expects it.
#[repr(C)]
union ControlBuffer {
    _header: libc::cmsghdr,
    bytes: [u8; 64],
}

fn send(channel: &OwnedFd, listeners: &[(ListenerKind, OwnedFd)]) -> io::Result<()> {
    let numbers: Vec<RawFd> = listeners.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    let mut kinds: Vec<u8> = listeners.iter().map(|(kind, _)| kind.code()).collect();
    let length = u32::try_from(size_of_val(&numbers[..])).map_err(io::Error::other)?;
    let mut content = libc::iovec {
        iov_base: kinds.as_mut_ptr().cast(),
        iov_len: kinds.len(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn javas_options_of_image_stay() {
        let of = |name: &str, value: &str| {
            let value = beside_images(name.as_ref(), value.as_ref());
            value.into_owned().into_string().unwrap()
        };
        let own = env::var("PATH").unwrap();
        assert_eq!(of("PATH", JAVA_OPTIONS), format!("{own} {JAVA_OPTIONS}"));
        assert_eq!(of("PATH", "/bin"), "/bin");
        assert_eq!(of("CYNODE_NOT_SET", JAVA_OPTIONS), JAVA_OPTIONS);
        let port = format!("proxyPort={EGRESS_PORT}");
        assert_eq!(JAVA_OPTIONS.matches(&port).count(), 2);
    }
}
