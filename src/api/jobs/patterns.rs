//! Patterns of files to collect, relative to the workspace.
//!
//! `*` and `?` match within one name, `**` across directories. A pattern that matches a directory takes all that is
//! below it.

use super::artifacts::ARTIFACTS_DIRECTORY;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

/// Patterns of one job, and the directory that is always collected.
pub struct Patterns {
    set: GlobSet,
    /// Directories below which each pattern can match, without wildcards.
    prefixes: Vec<Vec<u8>>,
}

impl Patterns {
    /// Reads patterns. Also returns those that can't be read.
    pub fn new(patterns: &[String]) -> (Self, Vec<String>) {
        let (mut builder, mut prefixes) = (GlobSetBuilder::new(), Vec::new());
        let mut invalid = Vec::new();
        for pattern in patterns {
            let relative = pattern.strip_prefix("/workspace/").unwrap_or(pattern);
            let relative = relative.trim_start_matches("./").trim_end_matches('/');
            // The workspace itself, and so all that is in it.
            let relative = if matches!(relative, "" | ".") {
                "**"
            } else {
                relative
            };
            let below = format!("{relative}/**");
            let globs = [relative, &below]
                .map(|glob| GlobBuilder::new(glob).literal_separator(true).build());
            match globs {
                [Ok(itself), Ok(below)] => {
                    builder.add(itself).add(below);
                    prefixes.push(literal_prefix(relative));
                }
                _ => invalid.push(pattern.clone()),
            }
        }
        // Fails for patterns that are too large together.
        let set = builder.build().unwrap_or_else(|_| {
            invalid = patterns.to_vec();
            GlobSet::empty()
        });
        (Self { set, prefixes }, invalid)
    }

    /// Whether a file is to be collected.
    pub fn is_match(&self, path: &[u8]) -> bool {
        is_below(path, ARTIFACTS_DIRECTORY.as_bytes())
            || self.set.is_match(Path::new(OsStr::from_bytes(path)))
    }

    /// Whether a file below this directory may be one to collect.
    pub fn may_match_below(&self, directory: &[u8]) -> bool {
        let always = ARTIFACTS_DIRECTORY.as_bytes();
        directory == always
            || is_below(directory, always)
            || self.prefixes.iter().any(|prefix| {
                directory == prefix || is_below(directory, prefix) || is_below(prefix, directory)
            })
    }
}

/// Whether `path` is inside of `directory`, which may be the top.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    if directory.is_empty() {
        return !path.is_empty();
    }
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with(b"/"))
}

/// Components of a pattern before the first one with a wildcard.
fn literal_prefix(pattern: &str) -> Vec<u8> {
    let is_literal = |part: &&str| !part.contains(['*', '?', '[', ']', '{', '}', '\\', '!']);
    let parts: Vec<_> = pattern.split('/').take_while(is_literal).collect();
    parts.join("/").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(patterns: &[&str]) -> Patterns {
        let patterns: Vec<_> = patterns.iter().map(|&one| one.to_owned()).collect();
        let (patterns, invalid) = Patterns::new(&patterns);
        assert_eq!(invalid, [""; 0]);
        patterns
    }

    #[test]
    fn wildcards_match_as_documented() {
        for (pattern, path, is_meant) in [
            ("*.json", "a.json", true),
            ("*.json", "out/a.json", false),
            ("out/*.json", "out/a.json", true),
            ("out/*.json", "out/b/a.json", false),
            ("**/*.json", "out/b/a.json", true),
            ("**/*.json", "a.json", true),
            ("out", "out/b/a.json", true),
            ("out/", "out/a", true),
            ("./out", "out/a", true),
            ("/workspace/out/**", "out/a", true),
            (".", "a/b", true),
            ("./", "a", true),
            ("././.", "a", true),
            ("/workspace/.", "a", true),
            ("out", "outer/a", false),
            ("a?[bc].{x,y}", "a1b.y", true),
            ("none", "artifacts/x", true),
            ("none", "artifacts", false),
            ("none", "artifactsx/x", false),
        ] {
            let found = patterns(&[pattern]);
            assert_eq!(
                found.is_match(path.as_bytes()),
                is_meant,
                "{pattern} {path}"
            );
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let is_walked = parent.is_empty() || found.may_match_below(parent.as_bytes());
            assert!(is_walked || !is_meant, "{pattern} {path}");
        }
    }

    #[test]
    fn directories_without_matches_are_not_entered() {
        let found = patterns(&["out/deep/*.json"]);
        assert!(found.may_match_below(b"out"));
        assert!(found.may_match_below(b"out/deep"));
        assert!(!found.may_match_below(b"data"));
        assert!(!found.may_match_below(b"out/other"));
        assert!(patterns(&["**/x"]).may_match_below(b"data/a"));
        assert!(!patterns(&[]).may_match_below(b"data"));
    }

    #[test]
    fn unreadable_patterns_are_named() {
        let (found, invalid) = Patterns::new(&["[".to_owned(), "ok".to_owned()]);
        assert_eq!(invalid, ["["]);
        assert!(found.is_match(b"ok"));
    }
}
