//! Paths of a source file: what it imports and names, from the root of the crate where that can be said.

use crate::source::Source;
use std::collections::HashSet;

/// A path that a file mentions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    /// Segments: `crate::a::B` and `super::a::B` in `src/c.rs` are `["crate", "a", "B"]` both.
    pub(crate) path: Vec<String>,
    /// Line number, from 1.
    pub(crate) line: usize,
}

/// All paths outside of tests, groups of imports written out.
pub(crate) fn mentions(source: &Source) -> Vec<Mention> {
    let mut reader = Reader {
        source,
        modules: module_path(&source.path),
        open_modules: Vec::new(),
        found: Vec::new(),
    };
    reader.read();
    reader.found
}

/// Files whose module is declared with `#[cfg(test)]`, without `.rs`: `src/a/tests` stands for `src/a/tests.rs` and all
/// below `src/a/tests/`.
pub(crate) fn test_modules(sources: &[Source]) -> HashSet<String> {
    let mut found = HashSet::new();
    for source in sources {
        for n in 0..source.tokens.len() {
            if let Some(at) = test_module(source, n)
                && source.at(at + 2, &[";"])
            {
                let mut path = vec!["src".to_owned()];
                path.extend(module_path(&source.path));
                path.push(source.tokens[at + 1].text.clone());
                found.insert(path.join("/"));
            }
        }
    }
    found
}

/// Segments of the module that a file of `src` is.
fn module_path(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/')
        .filter(|name| *name != "lib")
        .map(str::to_owned)
        .collect()
}

/// The position of `mod` where `#[cfg(test)]` at `n` belongs to a module.
fn test_module(source: &Source, n: usize) -> Option<usize> {
    if !source.at(n, &["#", "[", "cfg", "(", "test", ")", "]"]) {
        return None;
    }
    let mut at = n + 7;
    while source.at(at, &["#"]) {
        at = source.after_group(at + 1);
    }
    source.at(at, &["mod"]).then_some(at)
}

struct Reader<'a> {
    source: &'a Source,
    modules: Vec<String>,
    /// Where the modules inside of the file end, each beside its number of segments.
    open_modules: Vec<usize>,
    found: Vec<Mention>,
}

impl Reader<'_> {
    fn read(&mut self) {
        let mut at = 0;
        while at < self.source.tokens.len() {
            if self.open_modules.last().is_some_and(|end| at + 1 >= *end) {
                self.open_modules.pop();
                self.modules.pop();
            }
            at = self.step(at);
        }
    }

    /// Reads what begins at a position; the position after it.
    fn step(&mut self, at: usize) -> usize {
        if let Some(module) = test_module(self.source, at) {
            return match self.source.at(module + 2, &["{"]) {
                true => self.source.after_group(module + 2),
                false => module + 2,
            };
        }
        let token = &self.source.tokens[at];
        if token.text == "mod" && self.source.at(at + 2, &["{"]) {
            self.modules.push(self.source.tokens[at + 1].text.clone());
            self.open_modules.push(self.source.after_group(at + 2));
            return at + 3;
        }
        if let Some(path) = token.text.strip_prefix("\"crate::") {
            let path = format!("crate::{}", path.trim_end_matches('"'));
            let path = path.split("::").map(str::to_owned).collect();
            self.add(path, token.line);
        } else if token.is_word() {
            return self.path(Vec::new(), at);
        }
        at + 1
    }

    /// Reads a path, or the tree of an import; the position after it.
    fn path(&mut self, mut path: Vec<String>, mut at: usize) -> usize {
        let line = self.source.tokens[at].line;
        loop {
            path.push(self.source.tokens[at].text.clone());
            at += 1;
            if !self.source.at(at, &["::"]) {
                break;
            }
            let Some(next) = self.source.tokens.get(at + 1) else {
                break;
            };
            if next.text == "{" {
                return self.group(&path, at + 1);
            }
            if !next.is_word() {
                break;
            }
            at += 1;
        }
        if path.len() > 1 {
            self.add(path, line);
        }
        at
    }

    fn group(&mut self, path: &[String], open: usize) -> usize {
        let end = self.source.after_group(open);
        let mut at = open + 1;
        while at + 1 < end {
            let is_path = self.source.tokens[at].is_word();
            at = match is_path {
                true => self.path(path.to_vec(), at),
                false => at + 1,
            };
            if self.source.at(at, &["as"]) {
                at += 2;
            }
        }
        end
    }

    fn add(&mut self, mut path: Vec<String>, line: usize) {
        let mut base = self.modules.clone();
        if path[0] == "super" || path[0] == "self" {
            while matches!(path.first().map(String::as_str), Some("super" | "self")) {
                if path.remove(0) == "super" {
                    base.pop();
                }
            }
            base.insert(0, "crate".to_owned());
            base.append(&mut path);
            path = base;
        }
        self.found.push(Mention { path, line });
    }
}

#[test]
fn imports_are_written_out_from_the_root() {
    let text = "
        use crate::{a::{self, B as C}, d};
        use super::{super::e::F, g};
        mod inner { use super::super::h::I; fn f() { crate::j::k(); } }
        #[serde(default = \"crate::l::m\")]
        fn f(x: std::process::Command) {}
        #[cfg(test)]
        #[allow(unused)]
        mod tests { use crate::n; }
        mod after { use super::o; }";
    let source = Source::new("src/x/y/z.rs", text);
    let found = mentions(&source);
    let found: Vec<_> = found
        .iter()
        .map(|mention| mention.path.join("::"))
        .collect();
    let expected = [
        "crate::a::self",
        "crate::a::B",
        "crate::d",
        "crate::x::e::F",
        "crate::x::y::g",
        "crate::x::y::h::I",
        "crate::j::k",
        "crate::l::m",
        "std::process::Command",
        "crate::x::y::z::o",
    ];
    assert_eq!(found, expected);
    let source = Source::new("src/a/mod.rs", "#[cfg(test)] mod tests;");
    assert!(test_modules(&[source]).contains("src/a/tests"));
}
