//! `/save`: the conversation as a file of the user.

use super::conversation::Conversation;
use crate::{api::time::Time, exit::Failure, text::clean};
use std::{
    env,
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Writes the conversation to a new file: as JSON to `*.json`, else as Markdown. Returns its path.
pub(super) fn save(conversation: &Conversation, name: Option<&str>) -> Result<PathBuf, Failure> {
    let path = name.map_or_else(|| default_name(Time::now()), with_home);
    let content = if path.extension().is_some_and(|end| end == "json") {
        conversation.to_json()?
    } else {
        conversation.to_markdown().into_bytes()
    };
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(&content));
    match written {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = format!("{} exists already; name another file", path.display());
            Err(Failure::usage(clean(&text)))
        }
        Err(error) => {
            let reason = missing_directory(&path)
                .filter(|_| error.kind() == io::ErrorKind::NotFound)
                .map_or_else(|| error.to_string(), no_directory);
            let text = format!("can't save to {}: {reason}", path.display());
            Err(Failure::usage(clean(&text)))
        }
    }
}

/// Outermost directory of a path that does not exist.
fn missing_directory(path: &Path) -> Option<&Path> {
    let directories = path.ancestors().skip(1);
    let named = directories.filter(|directory| !directory.as_os_str().is_empty());
    let missing = named.filter(|directory| !directory.exists());
    missing.last()
}

fn no_directory(path: &Path) -> String {
    format!("there is no directory {}", path.display())
}

/// Name such as `chat-2026-01-31-120000.md`.
fn default_name(now: Time) -> PathBuf {
    let time = now.to_string();
    let digits = |range: std::ops::Range<usize>| time.get(range).unwrap_or_default();
    let clock = digits(11..19).replace(':', "");
    format!("chat-{}-{clock}.md", digits(0..10)).into()
}

/// Path as typed, with the home directory in place of `~`, as in a shell.
fn with_home(name: &str) -> PathBuf {
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    match (name.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_file_is_never_replaced() {
        let home = tempfile::tempdir().unwrap();
        let mut conversation = Conversation::new("m".to_owned(), None);
        conversation.ask("a".to_owned());
        for name in ["x.md", "x.json"] {
            let path = home.path().join(name);
            let name = path.to_str();
            assert_eq!(save(&conversation, name).unwrap(), path);
            let failure = save(&conversation, name).unwrap_err();
            assert!(failure.message.contains("exists already"));
        }
        let read = |name| std::fs::read(home.path().join(name)).unwrap();
        assert!(read("x.md").starts_with(b"# Chat with m"));
        assert_eq!(Conversation::from_json(&read("x.json")), Some(conversation));
    }

    #[test]
    fn missing_directory_is_named() {
        let home = tempfile::tempdir().unwrap();
        let conversation = Conversation::new("m".to_owned(), None);
        let missing = home.path().join("missing");
        let path = missing.join("too/x.md");
        let failure = save(&conversation, path.to_str()).unwrap_err();
        let expected = format!(
            "can't save to {}: there is no directory {}",
            path.display(),
            missing.display()
        );
        assert_eq!(failure.message, expected);
        assert_eq!(missing_directory(Path::new("x.md")), None);
    }

    #[test]
    fn default_name_has_the_time() {
        let name = default_name(Time::from_millis(1_000));
        assert_eq!(name, Path::new("chat-1970-01-01-000001.md"));
    }
}
