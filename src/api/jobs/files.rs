//! Files that a job gets before its command, and patterns of those that are collected after it.
//!
//! Contents travel apart from the request, by their SHA-256: a job names what it needs, and its node has it already or
//! is sent it.

use crate::api::{problem::Problem, string_form::parsed};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// Maximum number of files of a job; an archive counts as one.
pub const MAX_FILES: usize = 1024;
/// Maximum number of patterns of files to collect.
pub const MAX_PATTERNS: usize = 64;
/// Longest path of a file, in bytes.
pub const MAX_PATH_BYTES: usize = 4096;
/// Longest component of a path, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// SHA-256 of a content, as 64 lowercase hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct ContentHash(String);

impl ContentHash {
    /// Hash of this digest.
    pub fn from_digest(digest: &[u8; 32]) -> Self {
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Hash in hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is not a hash.
#[derive(Debug, thiserror::Error)]
#[error("expected a SHA-256 as 64 lowercase hexadecimal digits")]
pub struct InvalidHash;

impl FromStr for ContentHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 64 && text.bytes().all(is_digit))
            .then(|| Self(text.to_owned()))
            .ok_or(InvalidHash)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a SHA-256 as 64 lowercase hexadecimal digits";
        parsed(deserializer, expected, |text| text.parse().ok())
    }
}

impl JsonSchema for ContentHash {
    fn schema_name() -> Cow<'static, str> {
        "ContentHash".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9a-f]{64}$"})
    }
}

/// Content by its hash, with its size.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Content {
    /// SHA-256 of the bytes.
    pub sha256: ContentHash,
    /// Number of bytes.
    pub size_bytes: u64,
}

/// Permission bits of a file, as octal digits such as `0755`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_octal = text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok();
        let mode = mode.filter(|mode| is_octal && (3..=4).contains(&text.len()) && *mode <= 0o777);
        mode.map(Self).ok_or(())
    }
}

impl Serialize for FileMode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "octal digits from 000 to 0777, such as \"0755\"";
        parsed(deserializer, expected, |text| text.parse().ok())
    }
}

impl JsonSchema for FileMode {
    fn schema_name() -> Cow<'static, str> {
        "FileMode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^0?[0-7]{3}$"})
    }
}

/// File that is placed in `/workspace` before the command runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobFile {
    /// Path in `/workspace`; of an archive, the directory that it is extracted to.
    pub path: String,
    /// Content, which is sent apart.
    pub content: Content,
    /// Permission bits; `0644` by default. An archive has those of its entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
    /// Whether the content is an archive to extract: tar, tar.gz or tar.zst.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extract: bool,
}

/// Checks a path in the workspace: relative, without `..`, with names that a file system can hold. The workspace
/// itself, `.`, is one for archives only.
pub fn check_path(pointer: &str, path: &str, is_archive: bool) -> Result<(), Problem> {
    let problem = |detail: String| Err(Problem::field(pointer, detail));
    let relative = path.strip_prefix("/workspace/").unwrap_or(path);
    if is_archive && matches!(path, "." | "/workspace" | "/workspace/") {
        return Ok(());
    }
    if path.len() > MAX_PATH_BYTES {
        return problem(format!(
            "is {} bytes long; the limit is {MAX_PATH_BYTES} bytes",
            path.len()
        ));
    }
    if path.contains('\0') {
        return problem("must not contain a NUL character".to_owned());
    }
    if relative.starts_with('/') || relative.is_empty() {
        return problem("must be a path in /workspace, such as data/input.csv".to_owned());
    }
    for name in relative.trim_end_matches('/').split('/') {
        if matches!(name, "" | "." | "..") {
            return problem("must not contain empty parts, . or ..; write the path out".to_owned());
        }
        if name.len() > MAX_NAME_BYTES {
            return problem(format!(
                "has a part of {} bytes; the limit is {MAX_NAME_BYTES} bytes",
                name.len()
            ));
        }
    }
    if !is_archive && relative.ends_with('/') {
        return problem("must name a file, not a directory; leave out the / at its end".to_owned());
    }
    Ok(())
}

/// Checks a pattern of files to collect: relative to the workspace, without `..`.
pub fn check_pattern(pointer: &str, pattern: &str) -> Result<(), Problem> {
    let relative = pattern.strip_prefix("/workspace/").unwrap_or(pattern);
    let is_bad = relative.is_empty()
        || relative.starts_with('/')
        || relative.contains('\0')
        || relative.len() > MAX_PATH_BYTES
        || relative.split('/').any(|part| part == "..");
    if is_bad {
        let detail = "must be a pattern of files in /workspace, such as out/*.json or results/**";
        return Err(Problem::field(pointer, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_in_workspace_pass() {
        for path in ["a", "a/b.c", "/workspace/a", "..a", "a..", "a b\nc", "ä"] {
            assert!(check_path("/p", path, false).is_ok(), "{path:?}");
        }
        let long = "x".repeat(256);
        let longer = "x/".repeat(2049);
        for path in [
            "",
            ".",
            "..",
            "/",
            "/etc/x",
            "a/../b",
            "a//b",
            "a/./b",
            "a/",
            "a\0b",
            "/workspace",
            "/workspace/",
            "/workspace/../etc",
            &long,
            &longer,
        ] {
            assert!(check_path("/p", path, false).is_err(), "{path:?}");
        }
        for path in [".", "/workspace", "data", "data/"] {
            assert!(check_path("/p", path, true).is_ok(), "{path:?}");
        }
        assert!(check_path("/p", "../x", true).is_err());
    }

    #[test]
    fn only_patterns_of_workspace_pass() {
        for pattern in ["*.json", "out/**", "/workspace/a?[bc]"] {
            assert!(check_pattern("/p", pattern).is_ok(), "{pattern}");
        }
        for pattern in ["", "/etc/*", "../*", "a/../../b", "\0"] {
            assert!(check_pattern("/p", pattern).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn modes_are_octal_digits() {
        let read = |json: &str| serde_json::from_str(json).map(|FileMode(mode)| mode).ok();
        assert_eq!(read("\"0755\""), Some(0o755));
        assert_eq!(read("\"644\""), Some(0o644));
        for json in ["\"4755\"", "\"8\"", "\"+755\"", "\"\"", "420"] {
            assert_eq!(read(json), None, "{json}");
        }
        assert_eq!(serde_json::to_string(&FileMode(0o644)).unwrap(), "\"0644\"");
    }
}
