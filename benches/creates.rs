//! Tasks created a second, each durable before its answer, beside SQLite alone.
//!
//! [`CONNECTIONS`] kept connections create tasks at an orchestrator without nodes. In turn with that, SQLite with the
//! same settings (WAL, `synchronous=FULL`) commits rows of about the same size, one by one and in groups. The clients
//! and the orchestrator share the machine's cores; SQLite has them alone.

use crate::{
    figures::Figure,
    support::{
        api::{Connection, bearer},
        roles::System,
    },
};
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;
/// Duration of each measurement.
const PERIOD: Duration = Duration::from_secs(2);
const GROUP: usize = 10;
const BODY: &str = r#"{"command":["true"]}"#;

pub fn bench() -> Vec<Figure> {
    let home = tempfile::tempdir().unwrap();
    let system = System::orchestrator(home.path());
    let sqlite = sqlite(&home.path().join("reference.db"));
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        rates[0].push(rows(&sqlite, 1));
        rates[1].push(rows(&sqlite, GROUP));
        rates[2].push(creates(&system));
    }
    let [one, grouped, creates] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    let name = format!("creates at {CONNECTIONS} connections");
    vec![
        Figure::plain("SQLite, rows one by one", "/s", one),
        Figure::plain(format!("SQLite, rows in groups of {GROUP}"), "/s", grouped),
        Figure::plain(name.clone(), "/s", creates),
        Figure::higher(
            format!("{name}, over SQLite one by one"),
            "×",
            creates / one,
        )
        .at_least(3.0),
        Figure::higher(
            format!("{name}, over SQLite in groups"),
            "×",
            creates / grouped,
        ),
    ]
}

fn sqlite(path: &Path) -> rusqlite::Connection {
    let sqlite = rusqlite::Connection::open(path).unwrap();
    let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
        CREATE TABLE rows (id TEXT PRIMARY KEY, spec TEXT NOT NULL) STRICT, WITHOUT ROWID;";
    sqlite.execute_batch(settings).unwrap();
    sqlite
}

/// Rows a second in commits of so many.
fn rows(sqlite: &rusqlite::Connection, group: usize) -> f64 {
    let spec = "x".repeat(200);
    let mut insert = sqlite.prepare("INSERT INTO rows VALUES (?1, ?2)").unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < PERIOD {
        sqlite.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..group {
            let id = uuid::Uuid::now_v7().to_string();
            insert.execute((id, &spec)).unwrap();
        }
        sqlite.execute_batch("COMMIT").unwrap();
        count += group;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

/// Tasks created a second.
fn creates(system: &System) -> f64 {
    let began = Instant::now();
    let count: usize = thread::scope(|scope| {
        let clients =
            (0..CONNECTIONS).map(|_| scope.spawn(|| create_until(system, began + PERIOD)));
        let clients: Vec<_> = clients.collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    count as f64 / began.elapsed().as_secs_f64()
}

fn create_until(system: &System, end: Instant) -> usize {
    let headers = bearer(&system.api.token);
    let mut connection = Connection::open(system.api.gateway);
    let mut count = 0;
    while Instant::now() < end {
        create(&mut connection, &headers);
        count += 1;
    }
    count
}

fn create(connection: &mut Connection, headers: &str) {
    let (status, body) = connection.call("POST", "/v1/tasks", headers, BODY);
    assert_eq!(status, 201, "{body}");
}

/// Creates this many tasks as fast as possible.
pub fn fill(system: &System, count: usize) {
    thread::scope(|scope| {
        for n in 0..CONNECTIONS {
            scope.spawn(move || {
                let headers = bearer(&system.api.token);
                let mut connection = Connection::open(system.api.gateway);
                for _ in (n..count).step_by(CONNECTIONS) {
                    create(&mut connection, &headers);
                }
            });
        }
    });
}
