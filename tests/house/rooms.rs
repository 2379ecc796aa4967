//! Imports between the top-level modules of `src`, the rooms.

use crate::{
    paths::mentions,
    source::{SRC, Source},
};
use std::collections::{BTreeMap, BTreeSet};

/// Modules without a subject of their own, which any room may import and which import only each other.
const GROUND_FLOOR: &[&str] = &[
    "background",
    "backoff",
    "data_dir",
    "digest",
    "disk_space",
    "environment",
    "errors",
    "exit",
    "files",
    "instances",
    "network",
    "range",
    "retry",
    "secrets",
    "terminal",
    "text",
    "tls",
    "wait",
];

/// Rooms that may import only what stands beside them, and the ground floor.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("http", &["api"]),
    ("store", &["api"]),
    ("identity", &["api", "store"]),
    ("archive", &[]),
    ("sandbox_init", &[]),
    (
        "sandbox_files",
        &["api", "archive", "engine", "sandbox_init"],
    ),
    ("spool", &["api"]),
    ("contents", &["api"]),
    ("inference", &["api", "http"]),
    ("engine", &["api", "sandbox_init"]),
    ("sandbox", &["api", "engine", "sandbox_init", "spool"]),
];

/// Rooms that meet only over HTTP.
const NEVER_IMPORT: &[(&str, &[&str])] = &[
    (
        "orchestrator",
        &["node", "worker", "sandbox", "engine", "spool"],
    ),
    ("node", &["orchestrator", "store", "identity"]),
    ("worker", &["orchestrator", "node", "store", "identity"]),
];

/// Paths that only some files may name, and the reason.
const CONFINED: &[(&[&str], &[&str], &str)] = &[
    (
        &["rusqlite"],
        &["src/store/sqlite/"],
        "SQL stays in `store/sqlite`; add a function to `Store` and call that",
    ),
    (
        &["process", "Command"],
        &[
            "src/client/sandbox/terminal/guard.rs",
            "src/engine/",
            "src/environment.rs",
            "src/node/gpu/",
            "src/sandbox/",
            "src/sandbox_init/",
        ],
        "podman is started by `engine` alone, and other programs only by the rooms named here; add a method there",
    ),
];

/// Places of each import of one room by another.
type Graph = BTreeMap<(String, String), Vec<String>>;

/// All rooms: `api` for `src/api/mod.rs`.
fn rooms(sources: &[Source]) -> BTreeSet<String> {
    let first = |source: &Source| source.module().into_iter().next();
    sources.iter().filter_map(first).collect()
}

fn graph(sources: &[Source]) -> Graph {
    let rooms = rooms(sources);
    let mut graph = Graph::new();
    for mention in mentions(sources) {
        // The root of the library holds the rooms and nothing else.
        if let ([from, ..], [root, to, ..]) = (&mention.module[..], &mention.path[..])
            && root == "crate"
            && from != to
            && rooms.contains(to)
        {
            let place = format!("{}:{}", mention.file, mention.line);
            let places = graph.entry((from.clone(), to.clone())).or_default();
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    graph
}

/// Imports of a kind, each with its first places.
fn imports(graph: &Graph, is_meant: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let is_meant = |((from, to), _): &(&(String, String), _)| is_meant(from, to);
    let line = |((from, to), places): (&(String, String), &Vec<String>)| {
        let more = match places.len() {
            0..=4 => String::new(),
            n => format!(", and {} more", n - 4),
        };
        let places = places[..places.len().min(4)].join(", ");
        format!("  {from} → {to}: {places}{more}")
    };
    graph.iter().filter(is_meant).map(line).collect()
}

fn is_forbidden(from: &str, to: &str) -> bool {
    let is_ground = |room: &str| GROUND_FLOOR.contains(&room);
    let names = |rules: &[(&str, &[&str])]| {
        let rule = rules.iter().find(|(room, _)| *room == from);
        rule.map(|(_, others)| others.contains(&to))
    };
    let is_allowed = is_ground(to) || names(MAY_IMPORT).unwrap_or(!is_ground(from));
    !is_allowed || names(NEVER_IMPORT) == Some(true)
}

/// Imports through which a room comes back to itself, directly or through others.
fn circles(graph: &Graph) -> Vec<String> {
    imports(graph, |from, to| {
        let mut reached = BTreeSet::from([to]);
        let mut next = vec![to];
        while let Some(room) = next.pop() {
            let edges = graph.keys().filter(|(from, _)| from == room);
            next.extend(
                edges
                    .map(|(_, to)| to.as_str())
                    .filter(|to| reached.insert(to)),
            );
        }
        reached.contains(from)
    })
}

fn confined(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for mention in mentions(sources) {
        let (file, line, path) = (mention.file, mention.line, mention.path);
        for (name, places, reason) in CONFINED {
            let is_named = path.windows(name.len()).any(|part| part == *name);
            if is_named && !places.iter().any(|place| file.starts_with(place)) {
                found.push(format!("  {file}:{line}: {}: {reason}", path.join("::")));
            }
        }
    }
    found
}

#[test]
fn rooms_import_only_what_they_may() {
    let found = imports(&graph(&SRC), is_forbidden).join("\n");
    assert!(
        found.is_empty(),
        "these imports go against the rules (`MAY_IMPORT`, `NEVER_IMPORT` in tests/house/rooms.rs). Move what is \
         shared to the lower of both rooms or to the ground floor, or hand it over as an argument:\n{found}"
    );
}

#[test]
fn rooms_import_each_other_in_no_circle() {
    let found = circles(&graph(&SRC)).join("\n");
    assert!(
        found.is_empty(),
        "these rooms import each other. Cut the circle at its weakest import: move the item down to the room that \
         both may import:\n{found}"
    );
}

#[test]
fn processes_and_database_are_confined() {
    let found = confined(&SRC).join("\n");
    assert!(
        found.is_empty(),
        "these files name what is not theirs:\n{found}"
    );
}

#[test]
fn named_rooms_exist() {
    let rooms = rooms(&SRC);
    let rules = MAY_IMPORT.iter().chain(NEVER_IMPORT);
    let named = rules.flat_map(|(room, others)| others.iter().chain([room]));
    let is_gone = |room: &&&str| !rooms.contains(**room);
    let gone: Vec<_> = named.chain(GROUND_FLOOR).filter(is_gone).collect();
    assert!(
        gone.is_empty(),
        "rules for rooms that are no more, take them out: {gone:?}"
    );
}

#[test]
fn each_violation_is_found() {
    let forbidden = |path: &str, text: &str| {
        let rooms = ["api", "store", "worker", "orchestrator", "text"];
        let mut sources: Vec<_> = rooms
            .map(|room| Source::new(&format!("src/{room}/mod.rs"), ""))
            .into();
        sources.push(Source::new(path, text));
        imports(&graph(&sources), is_forbidden)
    };
    let found = forbidden("src/api/x.rs", "use crate::store::Y;");
    assert_eq!(found, ["  api → store: src/api/x.rs:1"]);
    let wrong = [
        ("src/store/x.rs", "fn f() { crate::worker::y() }"),
        (
            "src/store/x.rs",
            "fn f() { info!(x = %crate::worker::Y, \"z\") }",
        ),
        ("src/text.rs", "use super::api;"),
        ("src/worker/x.rs", "use super::super::orchestrator;"),
    ];
    for (path, text) in wrong {
        assert_eq!(forbidden(path, text).len(), 1, "{text}");
    }
    let test = "#[cfg(test)] mod tests { use crate::store::Y; }";
    assert_eq!(forbidden("src/api/x.rs", test), [""; 0]);
    let right = "use crate::{api::Y, text};";
    assert_eq!(forbidden("src/worker/x.rs", right), [""; 0]);
}

#[test]
fn circles_are_found_across_rooms() {
    let sources = [
        Source::new("src/a.rs", "use crate::b::X;"),
        Source::new("src/b/c.rs", "use crate::{c, d};"),
        Source::new("src/c.rs", "\nuse crate::a;"),
        Source::new("src/d.rs", ""),
    ];
    let expected = [
        "  a → b: src/a.rs:1",
        "  b → c: src/b/c.rs:1",
        "  c → a: src/c.rs:2",
    ];
    assert_eq!(circles(&graph(&sources)), expected);
}

#[test]
fn confined_paths_are_found_elsewhere() {
    let command = "use tokio::{net, process::{Child, Command}};";
    let connection = "use rusqlite::Connection;";
    for (path, text, expected) in [
        ("src/api/x.rs", "fn f(c: &rusqlite::Connection) {}", 1),
        ("src/store/x.rs", connection, 1),
        ("src/store/sqlite/x.rs", connection, 0),
        ("src/worker/x.rs", command, 1),
        ("src/worker/x.rs", "fn f() { std::process::exit(1) }", 0),
    ] {
        let found = confined(&[Source::new(path, text)]);
        assert_eq!(found.len(), expected, "{path}: {text}");
    }
}
