//! `--upload PATH[:DEST]`.

use crate::{
    api::jobs::files::check_path,
    exit::{Exit, Failure},
};
use std::path::{Component, Path, PathBuf};

/// Workspace of a sandbox.
const WORKSPACE: &str = "/workspace";

/// File or directory to upload, and its place in the workspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Upload {
    pub(in crate::client) path: PathBuf,
    /// Path in the workspace: of a file, or of the directory that has the files; `.` is the workspace.
    pub(in crate::client) dest: String,
}

impl Upload {
    /// Upload of a flag. `is_directory` tells whether a path is a directory, `None` where there is nothing.
    pub(super) fn parse(
        text: &str,
        is_directory: impl Fn(&Path) -> Option<bool>,
    ) -> Result<Self, Failure> {
        let usage = |detail: String| Failure::usage(format!("--upload {text}: {detail}"));
        // A name may contain a colon: a path that exists is taken whole.
        let (path, dest) = match text.rsplit_once(':') {
            Some((path, dest)) if is_directory(Path::new(text)).is_none() => (path, Some(dest)),
            _ => (text, None),
        };
        let path = Path::new(path);
        let Some(is_directory) = is_directory(path) else {
            return Err(usage(format!("{} does not exist", path.display())));
        };
        let dest = match dest {
            Some(dest) => in_workspace(dest, path, is_directory)
                .ok_or_else(|| usage("give a name for the file after the colon".to_owned()))?,
            None if is_directory && !has_name(path) => ".".to_owned(),
            None => name(path).ok_or_else(|| usage("give a destination: PATH:DEST".to_owned()))?,
        };
        check_path("", &dest, is_directory).map_err(|problem| {
            let text = format!(
                "--upload {text}: the destination {dest:?} {}",
                problem.detail
            );
            Failure::new(Exit::Invalid, text)
        })?;
        Ok(Self {
            path: path.to_owned(),
            dest,
        })
    }
}

/// Whether the last part of a path is a name of its own, unlike in `.`, `..` and `data/.`.
fn has_name(path: &Path) -> bool {
    let ends_with_dot = path.as_os_str().as_encoded_bytes().ends_with(b"/.");
    !ends_with_dot && matches!(path.components().next_back(), Some(Component::Normal(_)))
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// Path in the workspace for a destination. A file goes into a destination that ends with a slash.
fn in_workspace(dest: &str, path: &Path, is_directory: bool) -> Option<String> {
    let dest = match dest.strip_prefix(WORKSPACE) {
        Some("") => ".",
        Some(rest) if rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => dest,
    };
    let dest = dest.strip_prefix("./").unwrap_or(dest);
    let parent = dest.trim_end_matches('/');
    let is_workspace = matches!(parent, "" | ".") && !dest.starts_with('/');
    match (is_directory, is_workspace, dest.ends_with('/')) {
        (true, true, _) => Some(".".to_owned()),
        (true, ..) => Some(parent.to_owned()),
        (false, true, _) => name(path),
        (false, false, true) => Some(format!("{parent}/{}", name(path)?)),
        (false, false, false) => Some(dest.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, String)> {
        let is_directory = |path: &Path| match path.to_str().unwrap() {
            "data" | "data/" | "a/data" | "." | ".." | "data/." => Some(true),
            "f.py" | "a/f.py" | "odd:name" => Some(false),
            _ => None,
        };
        let upload = Upload::parse(text, is_directory).ok()?;
        Some((upload.path.to_str().unwrap().to_owned(), upload.dest))
    }

    #[test]
    fn destination_follows_documented_rules() {
        for (text, path, dest) in [
            (".", ".", "."),
            ("..", "..", "."),
            ("data", "data", "data"),
            ("data/", "data/", "data"),
            ("data/.", "data/.", "."),
            ("a/data", "a/data", "data"),
            ("data:input", "data", "input"),
            ("data:in/put/", "data", "in/put"),
            ("data:.", "data", "."),
            ("data:/workspace", "data", "."),
            ("data:/workspace/input", "data", "input"),
            (".:src", ".", "src"),
            ("f.py", "f.py", "f.py"),
            ("a/f.py", "a/f.py", "f.py"),
            ("f.py:main.py", "f.py", "main.py"),
            ("f.py:src/", "f.py", "src/f.py"),
            ("f.py:.", "f.py", "f.py"),
            ("f.py:/workspace/b.py", "f.py", "b.py"),
            ("odd:name", "odd:name", "odd:name"),
            ("odd:name:x", "odd:name", "x"),
        ] {
            assert_eq!(
                parse(text),
                Some((path.to_owned(), dest.to_owned())),
                "{text}"
            );
        }
        for text in [
            "none",
            "none:x",
            "data:../x",
            "data:/etc",
            "f.py:/",
            "f.py:a/../../b",
            "data:a//b",
            "",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
