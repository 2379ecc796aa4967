//! Source files as tokens: enough of Rust's syntax to find paths, modules and functions.
//!
//! Comments and the insides of strings don't count, `#[cfg(test)]` modules can be told apart, and nothing of the
//! code under test is compiled in.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// A source file.
pub(crate) struct Source {
    /// Path relative to the package, such as `src/api/mod.rs`.
    pub(crate) path: String,
    pub(crate) tokens: Vec<Token>,
    /// Number of lines.
    pub(crate) lines: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// Line number, from 1.
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn is_word(&self) -> bool {
        let is_start = |c: char| c.is_alphabetic() || c == '_';
        self.text.starts_with(is_start) && !self.text.contains(['"', '\''])
    }
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            tokens: tokens(text),
            lines: text.lines().count(),
        }
    }

    /// The words and punctuation from a position on, for matching.
    pub(crate) fn at(&self, position: usize, expected: &[&str]) -> bool {
        let found = self.tokens.get(position..position + expected.len());
        found.is_some_and(|found| found.iter().zip(expected).all(|(a, b)| a.text == *b))
    }

    /// The position after the group that opens at `position`, such as the one of a brace.
    pub(crate) fn after_group(&self, position: usize) -> usize {
        let mut depth = 0_usize;
        for (n, token) in self.tokens.iter().enumerate().skip(position) {
            match token.text.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                return n + 1;
            }
        }
        self.tokens.len()
    }
}

/// All Rust files of `src`.
pub(crate) static SRC: LazyLock<Vec<Source>> = LazyLock::new(|| read_all("src"));
/// All Rust files of `tests`.
pub(crate) static TESTS: LazyLock<Vec<Source>> = LazyLock::new(|| read_all("tests"));

fn read_all(directory: &str) -> Vec<Source> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&package.join(directory), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(package).unwrap().to_str().unwrap();
        Source::new(name, &fs::read_to_string(path).unwrap())
    };
    paths.iter().map(read).collect()
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|end| end == "rs") {
            paths.push(path);
        }
    }
}

/// Words, `::`, and single characters of punctuation. Of a string only its quotes and text are kept, as one token.
fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        rest: text,
        line: 1,
    };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next_token() {
        tokens.push(token);
    }
    tokens
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

impl Lexer<'_> {
    fn next_token(&mut self) -> Option<Token> {
        loop {
            let first = self.rest.chars().next()?;
            let length = if self.rest.starts_with("//") {
                self.rest.find('\n').unwrap_or(self.rest.len())
            } else if self.rest.starts_with("/*") {
                block_comment(self.rest)
            } else if first.is_whitespace() {
                first.len_utf8()
            } else {
                break;
            };
            self.take(length);
        }
        let length = literal(self.rest).unwrap_or_else(|| {
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            let word = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
            match word {
                0 if self.rest.starts_with("::") => 2,
                0 => self.rest.chars().next().map_or(0, char::len_utf8),
                word => word,
            }
        });
        let line = self.line;
        let text = self.take(length);
        Some(Token { text, line })
    }

    fn take(&mut self, length: usize) -> String {
        let (taken, rest) = self.rest.split_at(length);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken.to_owned()
    }
}

/// Comments of this kind nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of the string, character or lifetime that `text` begins with.
fn literal(text: &str) -> Option<usize> {
    let prefix = text.find(|c: char| !matches!(c, 'b' | 'c' | 'r'))?;
    let (prefix, body) = text.split_at(prefix.min(2));
    if prefix.ends_with('r') {
        let hashes = body.find(|c| c != '#')?;
        if body[hashes..].starts_with('"') {
            let end = format!("\"{}", &body[..hashes]);
            let start = hashes + 1;
            let length = body[start..]
                .find(&end)
                .map_or(body.len(), |n| start + n + end.len());
            return Some(prefix.len() + length);
        }
        return None;
    }
    if body.starts_with('"') {
        return Some(prefix.len() + quoted(body, '"'));
    }
    if !body.starts_with('\'') || !matches!(prefix, "" | "b") {
        return None;
    }
    let mut after = body[1..].chars();
    match (after.next(), after.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => Some(prefix.len() + quoted(body, '\'')),
        // A lifetime.
        _ => Some(1 + body[1..].find(|c: char| !c.is_alphanumeric() && c != '_')?),
    }
}

fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (n, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if c == quote => return n + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[test]
fn comments_strings_and_lifetimes_are_told_apart() {
    let text = r##"/* a /* b */ c */ fn f<'a>(c: &'a str) { // g
        let x = ('\'', b'"', "\"}{", r#"crate::"x"#, c"y", '{'); }"##;
    let source = Source::new("x.rs", text);
    let words = source.tokens.iter().filter(|token| token.is_word());
    let words: Vec<_> = words.map(|token| token.text.as_str()).collect();
    assert_eq!(words, ["fn", "f", "c", "str", "let", "x"]);
}
