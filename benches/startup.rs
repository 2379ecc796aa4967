//! Starts: of an orchestrator with a million finished tasks, and of `cynode dev` to the first result. Also the size of
//! the binary.

use crate::{
    figures::Figure,
    support::{
        BINARY, Times,
        api::{Api, Connection, bearer},
        podman::image,
        roles::{PASSWORD, Process, System, address, orchestrator, role},
        run,
    },
};
use serde_json::json;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const FINISHED: usize = 1_000_000;
const ROUNDS: usize = 5;

pub fn bench() -> Vec<Figure> {
    let home = tempfile::tempdir().unwrap();
    let data_dir = home.path().join("orchestrator");
    finish_one_task(home.path());
    let empty: Times = (0..ROUNDS).map(|_| start(&data_dir)).collect();
    multiply_finished_task(&data_dir.join("cynode.db"));
    let full: Times = (0..ROUNDS).map(|_| start(&data_dir)).collect();
    let (first, again) = dev();
    let megabytes = |path: &Path| fs::metadata(path).unwrap().len() as f64 / 1e6;
    let mut figures = vec![
        Figure::plain("orchestrator, empty database", "s", empty.median()),
        Figure::plain("orchestrator, 1,000,000 finished tasks", "s", full.median()).at_most(1.0),
        Figure::plain(
            "`cynode dev` to the first result, new data directory",
            "s",
            first.median(),
        )
        .at_most(1.2),
        Figure::plain(
            "`cynode dev` to the first result, later starts",
            "s",
            again.median(),
        ),
        Figure::plain(
            "binary of `make build`",
            "MB",
            megabytes(Path::new(&*BINARY)),
        ),
    ];
    // There only after a `make release`.
    figures.extend(released().map(|path| {
        let figure = Figure::lower("binary of `make release`", "MB", megabytes(&path));
        figure.at_most(16.0).within(1.1)
    }));
    figures
}

/// The binary that `make release` has made, if any.
fn released() -> Option<PathBuf> {
    let entries = fs::read_dir("dist").ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    // Beside it are its checksum and its SBOM.
    let is_binary = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("cynode-") && !name.ends_with(".sha256") && !name.ends_with(".json")
    };
    paths.filter(is_binary).max()
}

fn finish_one_task(home: &Path) {
    let system = System::orchestrator(home);
    let task = system.api.create(&["true"]);
    system
        .api
        .post(&format!("/v1/tasks/{task}/cancel"), &json!({}));
}

/// Time of an orchestrator from its start to its first list of tasks.
fn start(data_dir: &Path) -> Duration {
    fs::remove_file(data_dir.join("addresses.json")).unwrap();
    let began = Instant::now();
    let _process = Process::spawn(&mut orchestrator(data_dir));
    let gateway = address(data_dir, "gateway");
    let login = Api::log_in(gateway, PASSWORD);
    let headers = bearer(&login.token);
    let (status, body) = Connection::open(gateway).call("GET", "/v1/tasks?limit=200", &headers, "");
    assert_eq!(status, 200, "{body}");
    began.elapsed()
}

/// Copies the one task of a database, and its job, under new ids.
fn multiply_finished_task(database: &Path) {
    let sqlite = rusqlite::Connection::open(database).unwrap();
    sqlite
        .execute_batch("PRAGMA synchronous = OFF; BEGIN")
        .unwrap();
    for (table, reference) in [("tasks", None), ("jobs", Some("task_id"))] {
        let columns = columns(&sqlite, table);
        let values: Vec<_> = columns
            .iter()
            .map(|column| match column.as_str() {
                "id" => "new_id".to_owned(),
                column if Some(column) == reference => "new_id".to_owned(),
                column => format!("one.{column}"),
            })
            .collect();
        let (columns, values) = (columns.join(", "), values.join(", "));
        let copy = format!(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {FINISHED}),
             ids AS (SELECT printf('01900000-0000-7000-8000-%012x', n) AS new_id FROM numbers)
             INSERT INTO {table} ({columns}) SELECT {values} FROM ids, (SELECT * FROM {table} LIMIT 1) AS one"
        );
        sqlite.execute_batch(&copy).unwrap();
    }
    let count = format!("UPDATE finished_tasks SET finished = finished + {FINISHED}; COMMIT");
    sqlite.execute_batch(&count).unwrap();
}

fn columns(sqlite: &rusqlite::Connection, table: &str) -> Vec<String> {
    let mut query = sqlite
        .prepare("SELECT name FROM pragma_table_info(?1)")
        .unwrap();
    let names = query.query_map([table], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

/// Times of `cynode dev` from its start to the result of a first `cynode run`: with a new data directory, and again.
fn dev() -> (Times, Times) {
    let mut times = (Times::default(), Times::default());
    for _ in 0..ROUNDS {
        let home = tempfile::tempdir().unwrap();
        times.0.push(first_result(home.path()));
        times.1.push(first_result(home.path()));
    }
    times
}

fn first_result(home: &Path) -> Duration {
    let listens =
        ["gateway", "control", "worker"].map(|name| format!("--{name}-listen=127.0.0.1:0"));
    let began = Instant::now();
    let mut command = role("dev", &home.join("data"));
    command
        .args(listens)
        .args(["--shutdown-grace=0s", "--default-image", image()])
        .env("XDG_CONFIG_HOME", home)
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let _process = Process(child);
    let is_up = |line: std::io::Result<String>| line.unwrap().contains("In another terminal");
    assert!(lines.any(is_up), "it did not start");
    let mut client = Command::new(&*BINARY);
    run(client
        .env("XDG_CONFIG_HOME", home)
        .args(["run", "--", "true"]));
    began.elapsed()
}
