//! Pre-shared keys of an orchestrator: the current one, and the one before it while nodes change over.

use super::validation::check_psk;
use crate::api::problem::Problem;
use zeroize::Zeroizing;

/// Most keys that are valid at a time.
pub const MAX_PSKS: usize = 2;
/// Beginning of a line without a key.
const COMMENT: char = '#';

/// Pre-shared keys, newest first, never empty.
#[derive(Clone)]
pub struct PreSharedKeys(Vec<Zeroizing<String>>);

impl PreSharedKeys {
    /// Keys of a text with one per line; blank lines and those that begin with `#` hold none. An error completes
    /// "the pre-shared key …" and names the line where there are several keys.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let found: Vec<_> = key_lines(text).collect();
        if found.len() > MAX_PSKS {
            let detail = format!(
                "is given as {} lines, but at most {MAX_PSKS} keys are valid at a time: keep the newest first and the \
                 one before it, and remove the rest",
                found.len()
            );
            return Err(Problem::field("", detail));
        }
        if let [(_, only)] = found[..] {
            check_psk(only)?;
        }
        for (line, key) in &found {
            check_psk(key).map_err(|problem| Problem::field("", at_line(*line, &problem)))?;
        }
        if found.is_empty() {
            check_psk("")?;
        }
        let keys = found.into_iter();
        let keys = keys.map(|(_, key)| Zeroizing::new(key.to_owned()));
        Ok(Self(keys.collect()))
    }

    /// Newest key: the one to show, and the one that a node uses.
    pub fn newest(&self) -> &str {
        self.0.first().map_or("", |key| key.as_str())
    }

    /// Valid keys, newest first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.as_str())
    }
}

fn at_line(line: usize, problem: &Problem) -> String {
    format!("(line {line}) {}", problem.detail)
}

/// First key of a text with one per line, for a node, which uses only that one. Empty where there is none.
pub fn first_psk(text: &str) -> &str {
    key_lines(text).next().map_or("", |(_, key)| key)
}

/// Lines with a key, by their numbers from 1 on. A key is the whole line, as it is in a file with a single one.
fn key_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate();
    lines.filter_map(|(n, line)| {
        let content = line.trim();
        let is_key = !content.is_empty() && !content.starts_with(COMMENT);
        is_key.then_some((n + 1, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD: &str = "the old key of the tests";
    const NEW: &str = "the new key of the tests";

    fn parsed(text: &str) -> Vec<String> {
        let keys = PreSharedKeys::parse(text).unwrap();
        assert_eq!(keys.newest(), first_psk(text));
        keys.iter().map(str::to_owned).collect()
    }

    fn refused(text: &str) -> String {
        PreSharedKeys::parse(text).err().unwrap().detail
    }

    #[test]
    fn keys_are_read_one_per_line() {
        assert_eq!(parsed(NEW), [NEW]);
        let file = format!("# since March\r\n{NEW}\r\n\n  # before\n{OLD}\n\n");
        assert_eq!(parsed(&file), [NEW, OLD]);
    }

    #[test]
    fn unusable_keys_name_their_line() {
        let short = format!("{NEW}\n\nshort\n");
        assert!(refused(&short).starts_with("(line 3) must have at least 16"));
        for alone in ["", " ", "short", "# only a comment, of many characters"] {
            assert!(
                refused(alone).starts_with("must have at least 16"),
                "{alone}"
            );
        }
        let three = format!("{NEW}\n{OLD}\n{OLD}\n");
        assert!(refused(&three).starts_with("is given as 3 lines"));
    }

    proptest! {
        /// A file with a single key has the same meaning as in releases that knew no others.
        #[test]
        fn single_key_is_kept_as_written(key in "[!\"$-~][ -~]{15,40}[!-~]") {
            prop_assert_eq!(parsed(&key), [key.clone()]);
            prop_assert_eq!(parsed(&format!("{key}\n")), [key]);
        }
    }
}
