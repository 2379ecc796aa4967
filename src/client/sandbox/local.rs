//! Paths of this machine and of a sandbox, as `docker cp` reads them.

use crate::exit::Failure;
use std::path::{Component, Path, PathBuf};

/// Directory in which relative paths of a sandbox begin.
const WORKSPACE: &str = "/workspace";

/// End of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Path in a sandbox, by its name or id.
    Sandbox(String, SandboxPath),
    /// Path here.
    Local(PathBuf),
    /// Tar archive on stdin or stdout.
    Stream,
}

impl Place {
    /// Reads an argument. A name has no slash, so that `./a:b` is a path here.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let is_path = text.starts_with(['.', '/']);
        let parts = text.split_once(':').filter(|_| !is_path);
        match parts.filter(|(name, _)| !name.is_empty() && !name.contains('/')) {
            Some((name, path)) => Ok(Self::Sandbox(name.to_owned(), SandboxPath::parse(path))),
            None if text.is_empty() => {
                Err(Failure::usage("an empty path; write . for this directory"))
            }
            None => Ok(Self::Local(text.into())),
        }
    }
}

/// Absolute path in a sandbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SandboxPath {
    /// Path, without a slash at its end.
    pub(super) path: String,
    /// Whether it names a directory by its end: a slash, or a dot after one.
    pub(super) is_directory: bool,
    /// Whether it stands for the content of the directory, and not for the directory.
    pub(super) is_content: bool,
}

impl SandboxPath {
    /// Reads a path; a relative one begins in the workspace.
    pub(super) fn parse(text: &str) -> Self {
        let is_content = matches!(text, "" | "." | "/") || text.ends_with("/.");
        let is_directory = is_content || text.ends_with('/');
        let text = if text == "." {
            ""
        } else {
            text.strip_suffix("/.").unwrap_or(text)
        };
        let trimmed = text.trim_end_matches('/');
        let path = match (text.starts_with('/'), trimmed) {
            (true, "") => "/".to_owned(),
            (true, path) => path.to_owned(),
            (false, "") => WORKSPACE.to_owned(),
            (false, path) => format!("{WORKSPACE}/{path}"),
        };
        Self {
            path,
            is_directory,
            is_content,
        }
    }

    /// Last part, unless it is none of a file.
    pub(super) fn name(&self) -> Option<&str> {
        let name = self.path.rsplit('/').next()?;
        (!matches!(name, "" | "." | "..")).then_some(name)
    }

    /// Path of a name in this directory.
    pub(super) fn join(&self, name: &str) -> String {
        format!("{}/{name}", self.path.trim_end_matches('/'))
    }
}

/// Last part of a path here, unless it stands for the content of the directory.
pub(super) fn local_name(path: &Path) -> Option<&str> {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/.") {
        return None;
    }
    match path.components().next_back()? {
        Component::Normal(name) => name.to_str(),
        _ => None,
    }
}

/// Whether a path here names a directory by its end.
pub(super) fn ends_as_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let sandbox = |name: &str, path: &str, is_directory, is_content| {
            let path = path.to_owned();
            Place::Sandbox(
                name.to_owned(),
                SandboxPath {
                    path,
                    is_directory,
                    is_content,
                },
            )
        };
        let local = |path: &str| Place::Local(path.into());
        for (text, place) in [
            ("-", Place::Stream),
            ("a", local("a")),
            ("./a:b", local("./a:b")),
            ("/a:b", local("/a:b")),
            ("d/a:b", local("d/a:b")),
            (":b", local(":b")),
            (".", local(".")),
            ("box:", sandbox("box", "/workspace", true, true)),
            ("box:.", sandbox("box", "/workspace", true, true)),
            ("box:a", sandbox("box", "/workspace/a", false, false)),
            ("box:a/", sandbox("box", "/workspace/a", true, false)),
            ("box:a/.", sandbox("box", "/workspace/a", true, true)),
            ("box:/", sandbox("box", "/", true, true)),
            ("box:/etc/x:y", sandbox("box", "/etc/x:y", false, false)),
            ("box:/tmp//", sandbox("box", "/tmp", true, false)),
        ] {
            assert_eq!(Place::parse(text).unwrap(), place, "{text}");
        }
        assert!(Place::parse("").is_err());
    }

    #[test]
    fn names_are_last_parts() {
        for (path, name) in [
            ("a/b", Some("b")),
            ("a/", Some("a")),
            ("a/.", None),
            (".", None),
            ("..", None),
            ("/", None),
        ] {
            assert_eq!(local_name(Path::new(path)), name, "{path}");
        }
        assert_eq!(SandboxPath::parse("/").name(), None);
        assert_eq!(SandboxPath::parse("a/..").name(), None);
        assert_eq!(SandboxPath::parse("a/b").name(), Some("b"));
        assert_eq!(SandboxPath::parse("/").join("b"), "/b");
    }
}
