//! Headers of entries, in GNU format, as they are written: exact names and targets of any length.

use super::BLOCK_BYTES;
use tar::{EntryType, Header};

/// Longest path in a header; a longer one has an entry of its own before it.
const MAX_PLAIN_PATH_BYTES: usize = 100;
/// Mode of entries that are about others.
const RECORD_MODE: u32 = 0o644;

/// Fields of an entry.
pub(crate) struct EntryFields<'a> {
    /// Type.
    pub(crate) kind: EntryType,
    /// Path; of a directory with a slash at its end.
    pub(crate) path: &'a [u8],
    /// Target of a link; else empty.
    pub(crate) target: &'a [u8],
    /// Permission bits.
    pub(crate) mode: u32,
    /// User and group.
    pub(crate) owner: (u32, u32),
    /// Bytes of its content.
    pub(crate) size: u64,
    /// Time of the last change, in seconds since 1970.
    pub(crate) modified: i64,
}

/// Blocks of an entry before its content.
pub(crate) fn header_blocks(entry: &EntryFields<'_>) -> Vec<u8> {
    let mut blocks = Vec::new();
    long_name(&mut blocks, EntryType::GNULongName, entry.path);
    long_name(&mut blocks, EntryType::GNULongLink, entry.target);
    let mut header = Header::new_gnu();
    let fields = header.as_old_mut();
    put(&mut fields.name, entry.path);
    put(&mut fields.linkname, entry.target);
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0.into());
    header.set_gid(entry.owner.1.into());
    header.set_size(entry.size);
    header.set_mtime(u64::try_from(entry.modified).unwrap_or(0));
    header.set_cksum();
    blocks.extend(header.as_bytes());
    blocks
}

/// Comment on the whole archive, which programs that read archives pass over (pax, global header).
pub(crate) fn comment_blocks(text: &str) -> Vec<u8> {
    let rest = format!(" comment={text}\n");
    // The length counts its own digits.
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length += 1;
    }
    record(
        EntryType::XGlobalHeader,
        b"pax_global_header",
        format!("{length}{rest}").as_bytes(),
    )
}

/// Adds an entry that holds a name which is too long for a header.
fn long_name(blocks: &mut Vec<u8>, kind: EntryType, name: &[u8]) {
    if name.len() > MAX_PLAIN_PATH_BYTES {
        // The name ends with a NUL.
        blocks.extend(record(kind, b"././@LongLink", &[name, b"\0"].concat()));
    }
}

/// Entry about others.
fn record(kind: EntryType, name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    put(&mut header.as_old_mut().name, name);
    header.set_entry_type(kind);
    header.set_mode(RECORD_MODE);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut blocks = header.as_bytes().to_vec();
    blocks.extend(content);
    pad(&mut blocks);
    blocks
}

fn put(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
}
