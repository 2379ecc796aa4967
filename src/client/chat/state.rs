//! State that chats leave for later ones: `$XDG_STATE_HOME/cynode-chat/`, mode 0700.
//!
//! `history` has what was typed, one JSON string a line, for the arrow keys; `conversation.json` the last conversation,
//! for `--continue`. It is no data directory of a role, which holds nothing else. Several chats of one user share it; the
//! conversation is that of the one that was used last.

use super::conversation::Conversation;
use crate::{
    data_dir::make_private_dir,
    files::{Durability, PRIVATE_MODE, STALE_AGE, remove_temporary_files, replace_file},
};
use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

/// Number of inputs that are kept.
const MAX_ENTRIES: usize = 1000;
/// Size from which the oldest inputs are removed, in bytes.
const MAX_HISTORY_BYTES: usize = 1 << 20;

/// The directory; `None` where nothing is kept.
pub(super) struct State(Option<PathBuf>);

impl State {
    /// State of this user. Nothing is kept where there is no home.
    pub(super) fn of_user() -> Self {
        let from = |name: &str| {
            let path = env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let home = || Some(from("HOME")?.join(".local/state"));
        Self(
            from("XDG_STATE_HOME")
                .or_else(home)
                .map(|state| state.join("cynode-chat")),
        )
    }

    /// State that forgets all.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Inputs, oldest first; none where they can't be read. Removes old ones from the file.
    pub(super) fn history(&self) -> io::Result<Vec<String>> {
        let Some(_lock) = self.lock()? else {
            return Ok(Vec::new());
        };
        let path = self.file("history")?;
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes?,
        };
        // A line that was cut by a crash is left out.
        let lines = bytes.split(|byte| *byte == b'\n');
        let entries: Vec<String> = lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let kept = &entries[entries.len().saturating_sub(MAX_ENTRIES)..];
        if entries.len() > 2 * MAX_ENTRIES || bytes.len() > MAX_HISTORY_BYTES {
            let (mut lines, mut size) = (Vec::new(), 0);
            for entry in kept.iter().rev() {
                let line = line(entry)?;
                size += line.len();
                if size > MAX_HISTORY_BYTES / 2 {
                    break;
                }
                lines.push(line);
            }
            lines.reverse();
            replace_file(&path, &lines.concat(), Durability::Process)?;
        }
        Ok(kept.to_vec())
    }

    /// Adds an input.
    pub(super) fn remember(&self, input: &str) -> io::Result<()> {
        let Some(_lock) = self.lock()? else {
            return Ok(());
        };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(PRIVATE_MODE)
            .open(self.file("history")?)?;
        file.write_all(&line(input)?)
    }

    /// Conversation that was used last, if there is one that this release can read.
    pub(super) fn conversation(&self) -> io::Result<Option<Conversation>> {
        if self.0.is_none() {
            return Ok(None);
        }
        match fs::read(self.file("conversation.json")?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => Ok(Conversation::from_json(&bytes?)),
        }
    }

    /// Stores the conversation as the last one.
    pub(super) fn store(&self, conversation: &Conversation) -> io::Result<()> {
        let Some(_lock) = self.lock()? else {
            return Ok(());
        };
        let json = conversation
            .to_json()
            .map_err(|failure| io::Error::other(failure.message))?;
        let path = self.file("conversation.json")?;
        replace_file(&path, &json, Durability::Process)
    }

    /// Lock against other chats, held until it is dropped; makes the directory.
    fn lock(&self) -> io::Result<Option<File>> {
        let Some(directory) = &self.0 else {
            return Ok(None);
        };
        make_private_dir(directory)?;
        remove_temporary_files(directory, STALE_AGE);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(PRIVATE_MODE)
            .open(directory.join("lock"))?;
        file.lock()?;
        Ok(Some(file))
    }

    fn file(&self, name: &str) -> io::Result<PathBuf> {
        let directory = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(directory.join(name))
    }
}

/// Input as a line of the file.
fn line(input: &str) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(input).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::MetadataExt as _, path::Path};

    fn state(home: &Path) -> State {
        State(Some(home.join("chat")))
    }

    #[test]
    fn inputs_are_kept_for_the_next_chat() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(state(home.path()).history().unwrap(), [""; 0]);
        for input in ["first", "second\nline \"quoted\""] {
            state(home.path()).remember(input).unwrap();
        }
        let kept = state(home.path()).history().unwrap();
        assert_eq!(kept, ["first", "second\nline \"quoted\""]);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&home.path().join("chat")), 0o700);
        assert_eq!(mode(&home.path().join("chat/history")), 0o600);
    }

    #[test]
    fn old_and_damaged_inputs_go() {
        let home = tempfile::tempdir().unwrap();
        let state = state(home.path());
        state.remember("x").unwrap();
        let mut text = String::new();
        for n in 0..=2 * MAX_ENTRIES {
            text.push_str(&format!("\"{n}\"\n"));
        }
        let file = home.path().join("chat/history");
        fs::write(&file, text + "garbage\n\"cut").unwrap();
        let kept = state.history().unwrap();
        assert_eq!(kept.len(), MAX_ENTRIES);
        assert_eq!(kept.last().unwrap(), &(2 * MAX_ENTRIES).to_string());
        assert_eq!(
            fs::read_to_string(&file).unwrap().lines().count(),
            MAX_ENTRIES
        );
        fs::write(&file, line(&"x".repeat(MAX_HISTORY_BYTES)).unwrap()).unwrap();
        assert_eq!(state.history().unwrap().len(), 1);
        assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    }

    #[test]
    fn last_conversation_is_found_again() {
        let home = tempfile::tempdir().unwrap();
        assert!(state(home.path()).conversation().unwrap().is_none());
        let mut conversation = Conversation::new("m".to_owned(), None);
        conversation.ask("a".to_owned());
        state(home.path()).store(&conversation).unwrap();
        let found = state(home.path()).conversation().unwrap();
        assert_eq!(found, Some(conversation));
        fs::write(home.path().join("chat/conversation.json"), "garbage").unwrap();
        assert!(state(home.path()).conversation().unwrap().is_none());
    }

    #[test]
    fn nothing_is_kept_where_not_wanted() {
        let state = State::none();
        state.remember("a").unwrap();
        state
            .store(&Conversation::new("m".to_owned(), None))
            .unwrap();
        assert!(state.history().unwrap().is_empty());
        assert!(state.conversation().unwrap().is_none());
    }
}
