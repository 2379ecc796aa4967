//! Tar archives: headers that are written, entries that are read, and extraction into a directory.
//!
//! An archive that is read is hostile input. Every entry is made relative to a descriptor of its directory, and no link
//! leads out of the tree ([`tree`]); what an archive may hold is decided in [`reader`]. How much may be extracted is the
//! caller's decision ([`Meter`]).

mod extract;
mod header;
mod reader;
mod tree;

pub(crate) use extract::{ExtractError, Meter, extract};
pub(crate) use header::{EntryFields, comment_blocks, header_blocks};
pub(crate) use reader::{Archive, ArchiveError, Entry, EntryKind};
pub(crate) use tree::{Links, RelativePath, Tree, normalize, set_mode, set_modified};

/// Unit of an archive.
pub(crate) const BLOCK_BYTES: u64 = 512;
/// Two empty blocks at the end of an archive.
pub(crate) const END_BYTES: usize = 1024;
/// Longest part of a name that an error quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 300;

/// Name for an error: printable, and not too long.
pub(crate) fn quoted(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(MAX_QUOTED_BYTES)]);
    let more = if name.len() > MAX_QUOTED_BYTES {
        "…"
    } else {
        ""
    };
    format!("\"{}{more}\"", text.escape_debug())
}
