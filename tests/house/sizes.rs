//! Sizes of files and functions.

use crate::source::{SRC, Source, TESTS};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Most lines of a file.
const MAX_FILE_LINES: usize = 400;
/// Most lines of a function, from `fn` to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;

/// Name, first line and number of lines of each function with a body, those in macros too.
fn functions(tokens: TokenStream) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let trees: Vec<_> = tokens.into_iter().collect();
    let is_end = |tree: &&TokenTree| match tree {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        tree => tree.to_string() == ";",
    };
    for (n, tree) in trees.iter().enumerate() {
        if let TokenTree::Group(group) = tree {
            found.append(&mut functions(group.stream()));
        }
        if let [TokenTree::Ident(word), TokenTree::Ident(name), rest @ ..] = &trees[n..]
            && word == "fn"
            && let Some(TokenTree::Group(body)) = rest.iter().find(is_end)
        {
            let first = word.span().start().line;
            let lines = body.span_close().end().line + 1 - first;
            found.push((name.to_string(), first, lines));
        }
    }
    found
}

/// Files and functions that are too long, with their places.
fn too_long(source: &Source) -> Vec<String> {
    let (path, mut found) = (&source.path, Vec::new());
    let lines = source.text.lines().count();
    if lines > MAX_FILE_LINES {
        found.push(format!("{path}: {lines} lines"));
    }
    for (name, line, lines) in functions(source.text.parse().unwrap()) {
        if lines > MAX_FUNCTION_LINES {
            found.push(format!("{path}:{line}: fn {name}, {lines} lines"));
        }
    }
    found
}

#[test]
fn files_and_functions_stay_short() {
    let all = SRC.iter().chain(TESTS.iter());
    let found: Vec<_> = all.flat_map(too_long).collect();
    let found = found.join("\n");
    assert!(
        found.is_empty(),
        "a file has at most {MAX_FILE_LINES} lines, a function {MAX_FUNCTION_LINES}. Split these by what they do; a \
         long file is a module that wants to be two:\n{found}"
    );
}

#[test]
fn long_files_and_functions_are_found() {
    let body = "    x();\n".repeat(MAX_FUNCTION_LINES - 1);
    let long = format!(
        "fn ok() {{\n    x();\n}}\ntrait T {{\n    fn none(&self);\n}}\nfn long(f: fn(u8) -> u8)\nwhere\n{{\n{body}}}\n"
    );
    let found = too_long(&Source::new("src/a.rs", &long));
    assert_eq!(found, ["src/a.rs:7: fn long, 73 lines"]);
    let found = too_long(&Source::new("src/a.rs", &"//\n".repeat(MAX_FILE_LINES + 1)));
    assert_eq!(found, ["src/a.rs: 401 lines"]);
}
