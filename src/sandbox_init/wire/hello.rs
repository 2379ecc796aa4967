//! First message to init: the version of those that follow, and the namespace in which it must not be.

use super::{Cursor, VERSION};
use crate::sandbox_init::view;
use std::io::{self, Read};

const MAGIC: [u8; 3] = *b"cyn";
/// Bytes of a hello.
pub const HELLO_BYTES: usize = 20;

/// First message to init: the namespace in which it must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Version of the messages that follow.
    pub version: u8,
    /// Device and inode of the node's own PID namespace.
    pub pid_namespace: (u64, u64),
}

impl Hello {
    /// The hello of this process.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            version: VERSION,
            pid_namespace: view::pid_namespace()?,
        })
    }

    /// Bytes of the hello.
    pub fn encode(self) -> [u8; HELLO_BYTES] {
        let (device, inode) = self.pid_namespace;
        let mut bytes = [0; HELLO_BYTES];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = self.version;
        bytes[4..12].copy_from_slice(&device.to_le_bytes());
        bytes[12..].copy_from_slice(&inode.to_le_bytes());
        bytes
    }

    /// Reads a hello; fails on anything else.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; HELLO_BYTES];
        from.read_exact(&mut bytes)?;
        let mut cursor = Cursor(&bytes);
        let hello = cursor.hello().ok_or(io::ErrorKind::InvalidData)?;
        Ok(hello)
    }
}

impl Cursor<'_> {
    fn hello(&mut self) -> Option<Hello> {
        if self.take(MAGIC.len())? != MAGIC {
            return None;
        }
        let version = *self.take(1)?.first()?;
        let pid_namespace = (self.long()?, self.long()?);
        Some(Hello {
            version,
            pid_namespace,
        })
    }
}
