//! Init's end of its socket: bytes, and the descriptors that come with some of them.
//!
//! A request that brings descriptors carries them with its first byte (unix(7), SCM_RIGHTS), so they are here when it has
//! been read. They wait in order.

use std::{
    collections::VecDeque,
    io::{self, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

/// Socket with descriptors.
pub(super) struct Channel {
    socket: UnixStream,
    received: VecDeque<OwnedFd>,
}

/// Room for a control message with all descriptors, aligned as the kernel expects it.
#[repr(C)]
union ControlBuffer {
    _header: libc::cmsghdr,
    bytes: [u8; 64],
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: socket.into(),
            received: VecDeque::new(),
        }
    }

    /// Copy of the socket to send by.
    pub(super) fn sender(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    /// Takes the next `N` descriptors. Fails where fewer came: the kernel leaves out those for which this process has no
    /// number free.
    pub(super) fn take<const N: usize>(&mut self) -> io::Result<[OwnedFd; N]> {
        let count = N.min(self.received.len());
        let taken: Vec<_> = self.received.drain(..count).collect();
        taken
            .try_into()
            .map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))
    }

    /// Drops descriptors that no request has taken.
    pub(super) fn drop_rest(&mut self) {
        self.received.clear();
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut content = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let mut control = ControlBuffer { bytes: [0; 64] };
        // SAFETY: a header of zeros is one without parts.
        let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.msg_iov = &raw mut content;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = size_of::<ControlBuffer>() as _;
        // SAFETY: all that the header points to outlives the call.
        let length = unsafe {
            libc::recvmsg(
                self.socket.as_raw_fd(),
                &raw mut header,
                libc::MSG_CMSG_CLOEXEC,
            )
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        self.received.extend(descriptors(&header));
        Ok(length)
    }
}

/// Descriptors that came with a message.
fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the header is as the kernel has filled it, and its buffer still there; the kernel made each descriptor for
    // this process just now.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = part.as_ref() {
            if message.cmsg_level == libc::SOL_SOCKET && message.cmsg_type == libc::SCM_RIGHTS {
                let bytes = message.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(part).cast::<RawFd>();
                for n in 0..bytes / size_of::<RawFd>() {
                    found.push(OwnedFd::from_raw_fd(data.add(n).read_unaligned()));
                }
            }
            part = libc::CMSG_NXTHDR(header, part);
        }
    }
    found
}
