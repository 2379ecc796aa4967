//! Files in a sandbox. All of it is done inside of the sandbox, as its user: paths mean what they mean there.

use crate::api::{string_form::named_enum, time::Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Header with the permission bits of a file that is read, as octal digits such as `0644`.
pub const MODE_HEADER: &str = "cynode-file-mode";
/// Longest path, in bytes.
pub const MAX_PATH_BYTES: usize = 4096;
/// Largest `depth` of a list.
pub const MAX_LIST_DEPTH: u32 = 64;
/// Most entries of a list.
pub const MAX_LIST_ENTRIES: usize = 10_000;

named_enum! {
    /// Kind of a file.
    pub enum FileKind {
        /// Regular file.
        File,
        /// Directory.
        Directory,
        /// Symbolic link.
        Symlink,
        /// FIFO, socket or device.
        Other,
    }
}

/// Entry of a list of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileEntry {
    /// Absolute path.
    pub path: String,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// Size in bytes; of a link that of its target's name.
    pub size_bytes: u64,
    /// Permission bits as octal digits, such as `0644`.
    pub mode: String,
    /// Time of the last change of its content.
    pub modified_at: Time,
    /// Target of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Answer of `GET …/files:list`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FileList {
    /// Entries, sorted by path.
    pub entries: Vec<FileEntry>,
    /// Whether there are more than a list holds; list a subdirectory, or a smaller depth.
    pub truncated: bool,
}

/// Body of `POST …/files:mkdir`. Missing parents are made; a directory that exists is no error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MakeDirectory {
    /// Path of the directory.
    pub path: String,
}

/// Body of `POST …/files:move`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MoveFile {
    /// Path of what is moved.
    pub from: String,
    /// New path; an existing file is replaced, a directory is not.
    pub to: String,
}
