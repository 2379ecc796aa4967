//! Imports between the top-level modules of `src`, the rooms.

use crate::{
    paths::{Mention, mentions, test_modules},
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
    "retry",
    "secrets",
    "terminal",
    "text",
    "wait",
];

/// Rooms that may import only what stands beside them, and the ground floor.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("http", &["api"]),
    ("store", &["api"]),
    ("identity", &["api", "store"]),
    ("sandbox_init", &[]),
    ("spool", &["api"]),
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
            "src/engine/",
            "src/environment.rs",
            "src/node/gpu/",
            "src/sandbox/",
            "src/sandbox_init/",
        ],
        "podman is started by `engine` alone, and other programs only by the rooms named here; add a method there",
    ),
];

/// Imports of one room by another, with a file and line for each.
type Graph = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The room of a file or of a path: `api` of `src/api/mod.rs`; `None` for the library's and the binary's root.
fn room(path: &str) -> Option<&str> {
    let room = path.trim_start_matches("src/").split('/').next()?;
    let room = room.trim_end_matches(".rs");
    (room != "lib" && room != "main").then_some(room)
}

/// The paths of all files outside of tests.
fn all_mentions(sources: &[Source]) -> Vec<(&Source, Mention)> {
    let tests = test_modules(sources);
    let is_test = |path: &str| {
        let path = path.trim_end_matches(".rs");
        tests.iter().any(|test| {
            path.strip_prefix(test.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    let sources = sources.iter().filter(|source| !is_test(&source.path));
    sources
        .flat_map(|source| {
            mentions(source)
                .into_iter()
                .map(move |mention| (source, mention))
        })
        .collect()
}

fn graph(sources: &[Source]) -> Graph {
    let rooms: BTreeSet<&str> = sources
        .iter()
        .filter_map(|source| room(&source.path))
        .collect();
    let mut graph = Graph::new();
    for (source, mention) in all_mentions(sources) {
        let Some(from) = room(&source.path) else {
            continue;
        };
        let edges = graph.entry(from.to_owned()).or_default();
        // The root of the library holds the rooms and nothing else.
        let is_own = mention.path[0] == "crate";
        let to = mention
            .path
            .get(1)
            .filter(|to| is_own && rooms.contains(to.as_str()) && *to != from);
        if let Some(to) = to {
            let place = format!("{}:{}", source.path, mention.line);
            let places = edges.entry(to.clone()).or_default();
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    graph
}

/// An import with the first places that do it.
fn edge(graph: &Graph, from: &str, to: &str) -> String {
    let places = &graph[from][to];
    let more = match places.len() {
        0..=4 => String::new(),
        n => format!(", and {} more", n - 4),
    };
    format!(
        "  {from} → {to}: {}{more}",
        places[..places.len().min(4)].join(", ")
    )
}

fn forbidden_imports(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for (from, edges) in graph {
        for to in edges.keys().map(String::as_str) {
            let is_ground = |room: &str| GROUND_FLOOR.contains(&room);
            let allowed = match MAY_IMPORT.iter().find(|(room, _)| room == from) {
                Some((_, rooms)) => rooms.contains(&to) || is_ground(to),
                None if is_ground(from) => is_ground(to),
                None => true,
            };
            let never = NEVER_IMPORT.iter().find(|(room, _)| room == from);
            if !allowed || never.is_some_and(|(_, rooms)| rooms.contains(&to)) {
                found.push(edge(graph, from, to));
            }
        }
    }
    found
}

/// The rooms that a room imports, directly or through others.
fn reach<'a>(graph: &'a Graph, start: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![start];
    while let Some(room) = next.pop() {
        let edges = graph.get(room).into_iter().flat_map(BTreeMap::keys);
        next.extend(edges.map(String::as_str).filter(|to| reached.insert(*to)));
    }
    reached
}

/// Rooms that import each other, directly or through others.
fn circles(graph: &Graph) -> Vec<Vec<&str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = graph
        .keys()
        .map(|room| (room.as_str(), reach(graph, room)))
        .collect();
    let mut circles: Vec<Vec<&str>> = Vec::new();
    for (room, others) in &reached {
        let is_known = circles.iter().any(|circle| circle.contains(room));
        if others.contains(room) && !is_known {
            let back = |other: &&str| reached.get(*other).is_some_and(|back| back.contains(room));
            circles.push(others.iter().copied().filter(back).collect());
        }
    }
    circles
}

/// A circle with all of its imports.
fn describe(graph: &Graph, circle: &[&str]) -> String {
    let mut lines = vec![circle.join(", ")];
    for from in circle {
        let edges = graph[*from]
            .keys()
            .filter(|to| circle.contains(&to.as_str()));
        lines.extend(edges.map(|to| edge(graph, from, to)));
    }
    lines.join("\n")
}

fn confined(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (source, mention) in all_mentions(sources) {
        for (path, places, reason) in CONFINED {
            let names = mention.path.windows(path.len()).any(|part| part == *path);
            if names && !places.iter().any(|place| source.path.starts_with(place)) {
                found.push(format!(
                    "  {}:{}: {}: {reason}",
                    source.path,
                    mention.line,
                    mention.path.join("::")
                ));
            }
        }
    }
    found
}

#[test]
fn rooms_import_only_what_they_may() {
    let found = forbidden_imports(&graph(&SRC));
    assert!(
        found.is_empty(),
        "these imports go against the rules (`MAY_IMPORT`, `NEVER_IMPORT` in tests/house/rooms.rs). Move what is \
         shared to the lower of both rooms or to the ground floor, or hand it over as an argument:\n{}",
        found.join("\n")
    );
}

#[test]
fn rooms_import_each_other_in_no_circle() {
    let graph = graph(&SRC);
    let circles: Vec<_> = circles(&graph)
        .iter()
        .map(|circle| describe(&graph, circle))
        .collect();
    assert!(
        circles.is_empty(),
        "these rooms import each other. Cut the circle at its weakest import: move the item down to the room that \
         both may import:\n{}",
        circles.join("\n\n")
    );
}

#[test]
fn processes_and_database_are_confined() {
    let found = confined(&SRC);
    assert!(
        found.is_empty(),
        "these files name what is not theirs:\n{}",
        found.join("\n")
    );
}

#[test]
fn named_rooms_exist() {
    let rooms: BTreeSet<_> = SRC.iter().filter_map(|source| room(&source.path)).collect();
    let named = MAY_IMPORT
        .iter()
        .chain(NEVER_IMPORT)
        .flat_map(|(room, others)| others.iter().chain([room]));
    let missing: Vec<_> = named
        .chain(GROUND_FLOOR)
        .filter(|room| !rooms.contains(*room))
        .collect();
    assert!(
        missing.is_empty(),
        "rules for rooms that are no more, take them out: {missing:?}"
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
        forbidden_imports(&graph(&sources))
    };
    assert_eq!(
        forbidden("src/api/x.rs", "use crate::store::Y;"),
        ["  api → store: src/api/x.rs:1"]
    );
    assert_eq!(
        forbidden("src/store/x.rs", "fn f() { crate::worker::y() }").len(),
        1
    );
    assert_eq!(forbidden("src/text.rs", "use super::api;").len(), 1);
    assert_eq!(
        forbidden("src/worker/x.rs", "use super::super::orchestrator;").len(),
        1
    );
    assert_eq!(
        forbidden("src/worker/x.rs", "use crate::{api::Y, text};"),
        [""; 0]
    );
    let test = "#[cfg(test)] mod tests { use crate::store::Y; }";
    assert_eq!(forbidden("src/api/x.rs", test), [""; 0]);
}

#[test]
fn circles_are_found_across_rooms() {
    let sources = [
        Source::new("src/a.rs", "use crate::b::X;"),
        Source::new("src/b/c.rs", "use crate::{c, d};"),
        Source::new("src/c.rs", "\nuse crate::a;"),
        Source::new("src/d.rs", ""),
    ];
    let graph = graph(&sources);
    assert_eq!(circles(&graph), [["a", "b", "c"]]);
    let told = describe(&graph, &["a", "b", "c"]);
    assert!(
        told.contains("  c → a: src/c.rs:2") && !told.contains("→ d"),
        "{told}"
    );
}

#[test]
fn confined_paths_are_found_elsewhere() {
    let found = |path: &str, text: &str| confined(&[Source::new(path, text)]).len();
    assert_eq!(
        found("src/api/x.rs", "fn f(c: &rusqlite::Connection) {}"),
        1
    );
    assert_eq!(found("src/store/x.rs", "use rusqlite::Connection;"), 1);
    assert_eq!(
        found("src/store/sqlite/x.rs", "use rusqlite::Connection;"),
        0
    );
    assert_eq!(
        found(
            "src/worker/x.rs",
            "use tokio::{net, process::{Child, Command}};"
        ),
        1
    );
    assert_eq!(
        found("src/worker/x.rs", "fn f() { std::process::exit(1) }"),
        0
    );
}
