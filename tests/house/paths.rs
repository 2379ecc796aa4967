//! Paths of a source file: what it imports and names, from the root of the crate where that can be said.

use crate::source::Source;
use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{
    ExprPath, ItemMod, Lit, LitStr, UseGlob, UseName, UsePath, UseRename, UseTree,
    parse::{Parse, ParseStream, Parser, discouraged::Speculative},
    visit::{self, Visit},
};

/// A path that a file mentions.
pub(crate) struct Mention<'a> {
    pub(crate) file: &'a str,
    /// Line number, from 1.
    pub(crate) line: usize,
    /// Module around the path, from the root of the crate.
    pub(crate) module: Vec<String>,
    /// Segments: `crate::a::B` and `super::a::B` in `src/c.rs` are `["crate", "a", "B"]` both.
    pub(crate) path: Vec<String>,
}

/// All paths outside of `#[cfg(test)]` modules, groups of imports written out.
pub(crate) fn mentions(sources: &[Source]) -> Vec<Mention<'_>> {
    let (mut found, mut tests) = (Vec::new(), Vec::new());
    for source in sources {
        let file = syn::parse_file(&source.text).unwrap_or_else(|e| panic!("{}: {e}", source.path));
        let mut reader = Reader {
            file: &source.path,
            module: source.module(),
            prefix: Vec::new(),
            found: Vec::new(),
            tests: Vec::new(),
        };
        reader.visit_file(&file);
        found.append(&mut reader.found);
        tests.append(&mut reader.tests);
    }
    found.retain(|mention| !tests.iter().any(|test| mention.module.starts_with(test)));
    found
}

struct Reader<'a> {
    file: &'a str,
    module: Vec<String>,
    /// Segments around the tree of an import.
    prefix: Vec<Ident>,
    found: Vec<Mention<'a>>,
    /// Modules for tests.
    tests: Vec<Vec<String>>,
}

impl Reader<'_> {
    fn add<'i>(&mut self, segments: impl IntoIterator<Item = &'i Ident>) {
        let segments: Vec<&Ident> = segments.into_iter().collect();
        let [_, .., last] = segments[..] else {
            return;
        };
        let mut path: Vec<String> = segments.iter().map(ToString::to_string).collect();
        if path[0] == "super" || path[0] == "self" {
            let mut base = self.module.clone();
            while matches!(path.first().map(String::as_str), Some("super" | "self")) {
                if path.remove(0) == "super" {
                    base.pop();
                }
            }
            base.insert(0, "crate".to_owned());
            base.append(&mut path);
            path = base;
        }
        self.found.push(Mention {
            file: self.file,
            line: last.span().start().line,
            module: self.module.clone(),
            path,
        });
    }

    fn add_import(&mut self, name: Option<&Ident>) {
        let prefix = std::mem::take(&mut self.prefix);
        self.add(prefix.iter().chain(name));
        self.prefix = prefix;
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        self.module.push(module.ident.to_string());
        let is_test = |attribute: &syn::Attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<Ident>().is_ok_and(|on| on == "test")
        };
        if module.attrs.iter().any(is_test) {
            self.tests.push(self.module.clone());
        } else {
            visit::visit_item_mod(self, module);
        }
        self.module.pop();
    }

    fn visit_use_path(&mut self, part: &'ast UsePath) {
        self.prefix.push(part.ident.clone());
        self.visit_use_tree(&part.tree);
        self.prefix.pop();
    }

    fn visit_use_name(&mut self, name: &'ast UseName) {
        self.add_import(Some(&name.ident));
    }

    fn visit_use_rename(&mut self, name: &'ast UseRename) {
        self.add_import(Some(&name.ident));
    }

    fn visit_use_glob(&mut self, _: &'ast UseGlob) {
        self.add_import(None);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(path.segments.iter().map(|segment| &segment.ident));
        visit::visit_path(self, path);
    }

    /// Paths in texts, as serde takes them: `default = "crate::a::b"`.
    fn visit_lit_str(&mut self, text: &'ast LitStr) {
        if text.value().starts_with("crate::")
            && let Ok(path) = text.parse()
        {
            Visit::visit_path(self, &path);
        }
    }

    /// Arguments of macros and attributes: no syntax is known, so whatever reads as a path is one.
    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        let read = |input: ParseStream<'_>| {
            while !input.is_empty() {
                if let Some(tree) = next::<UseTree>(input) {
                    Visit::visit_use_tree(self, &tree);
                } else if let Some(path) = next::<ExprPath>(input) {
                    Visit::visit_expr_path(self, &path);
                } else {
                    match input.parse()? {
                        TokenTree::Group(group) => self.visit_token_stream(&group.stream()),
                        TokenTree::Literal(text) => Visit::visit_lit(self, &Lit::new(text)),
                        _ => {}
                    }
                }
            }
            Ok(())
        };
        read.parse2(tokens.clone()).unwrap();
    }
}

/// The next part of the input, taken only if it is of this kind.
fn next<T: Parse>(input: ParseStream<'_>) -> Option<T> {
    let ahead = input.fork();
    let found = ahead.parse().ok()?;
    input.advance_to(&ahead);
    Some(found)
}

#[test]
fn imports_are_written_out_from_the_root() {
    let text = "
        use crate::{a::{self, B as C}, d};
        use super::{super::e::F, g};
        mod inner { use super::super::h::I; fn f() { crate::j::k(); } }
        #[serde(default = \"crate::l::m\")]
        fn f(x: std::process::Command) { /* crate::comment */ \"}{\"; r\"a crate::text\"; }
        fn g() { select! { x = crate::p::<u8>() => { use crate::q::{r, *}; } } }
        #[cfg(test)]
        #[allow(unused)]
        pub(super) mod tests { use crate::n; }
        mod after { use super::o; }";
    let sources = [
        Source::new("src/x/y/z.rs", text),
        Source::new("src/a/mod.rs", "#[cfg(test)] mod tests;"),
        Source::new("src/a/tests/b.rs", "use crate::test;"),
    ];
    let found: Vec<_> = mentions(&sources)
        .iter()
        .map(|mention| format!("{} {}", mention.line, mention.path.join("::")))
        .collect();
    let expected = [
        "2 crate::a::self",
        "2 crate::a::B",
        "2 crate::d",
        "3 crate::x::e::F",
        "3 crate::x::y::g",
        "4 crate::x::y::h::I",
        "4 crate::j::k",
        "5 crate::l::m",
        "6 std::process::Command",
        "7 crate::p",
        "7 crate::q::r",
        "7 crate::q",
        "11 crate::x::y::z::o",
    ];
    assert_eq!(found, expected);
}
