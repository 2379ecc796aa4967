//! Names of tasks: unique for each user, and accepted wherever an id is.

use crate::support::{Api, Cluster, Orchestrator, uuid};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

/// Creates a task that no node can run; returns the answer.
fn create(user: &Api, name: &str) -> Value {
    let task = json!({"script": "true", "task_name": name, "node_labels": ["nowhere"]});
    user.post("/v1/tasks", &task).json(201)
}

#[test]
fn task_names_are_normalised_and_unique() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let [user, ann] = ["bob", "ann"].map(|handle| orchestrator.add_user(&admin, handle));
    let longest = "n".repeat(200);
    for (asked, name) in [
        ("Nightly Build #7", json!("nightly-build-7")),
        ("nightly build 7", json!("nightly-build-7-2")),
        ("nightly-build-7", json!("nightly-build-7-3")),
        ("nightly-build-7-2", json!("nightly-build-7-2-2")),
        ("日本", json!("task")),
        ("!", json!("task-2")),
        ("", Value::Null),
        (&longest, json!(longest)),
        (&longest, json!(format!("{}-2", &longest[2..]))),
    ] {
        let created = create(&user, asked);
        assert_eq!(created["task_name"], name, "{asked}");
        let path = format!("/v1/tasks/{}", created["id"].as_str().unwrap());
        assert_eq!(user.get(&path).json(200)["task_name"], name);
    }
    assert_eq!(
        create(&ann, "nightly build 7")["task_name"],
        "nightly-build-7"
    );
    // A repeated request creates no second task, so the name stays.
    let body =
        json!({"script": "true", "task_name": "once", "node_labels": ["nowhere"]}).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "k"),
    ];
    let once = || {
        user.call("POST", "/v1/tasks", &headers, body.as_bytes())
            .json(201)
    };
    let first = once();
    assert_eq!((&once(), &first["task_name"]), (&first, &json!("once")));
    // The filter finds exactly the tasks whose requested name it is.
    let named = |name: &str| -> Vec<Value> {
        let list = user.get(&format!("/v1/tasks?name={name}")).json(200);
        let tasks = list["tasks"].as_array().unwrap().iter();
        tasks.map(|task| task["task_name"].clone()).collect()
    };
    let builds = ["nightly-build-7-3", "nightly-build-7-2", "nightly-build-7"];
    assert_eq!(named("Nightly%20Build%20%237"), builds);
    assert_eq!(named("nightly-build"), ["nightly-build-7"]);
    assert_eq!(named("nightly"), Vec::<Value>::new());
}

#[test]
fn many_tasks_of_one_name_stay_fast() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let user = orchestrator.login();
    create(&user, "flood");
    let database = Connection::open(orchestrator.data_dir.join("cynode.db")).unwrap();
    database
        .execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000)
             INSERT INTO tasks SELECT printf('00000000-0000-7000-8000-%012d', n), user_id, 'completed',
                 'flood-' || n, spec, summary, exit_code, created_at, updated_at, started_at, updated_at, sandbox
             FROM tasks, numbers",
            [],
        )
        .unwrap();
    for n in 100_001..100_021 {
        assert_eq!(create(&user, "flood")["task_name"], format!("flood-{n}"));
    }
    let id = user.get("/v1/tasks/flood-99999").json(200)["id"].clone();
    assert_eq!(id, "00000000-0000-7000-8000-000000099999");
}

#[test]
fn name_or_prefix_replaces_id() {
    let cluster = Cluster::start();
    let user = &cluster.user;
    let task = json!({"script": "echo out; exit 3", "task_name": "Mine"});
    let id = user.post("/v1/tasks", &task).json(201)["id"]
        .as_str()
        .unwrap()
        .to_owned();
    cluster.finish(&id);
    // Tasks of the same minute share the beginning of their ids, but not the rest.
    let most = &id[..35];
    for word in [
        "mine",
        "Mine",
        most,
        &most.to_uppercase(),
        &id.to_uppercase(),
    ] {
        let path = format!("/v1/tasks/{word}");
        assert_eq!(user.get(&path).json(200)["id"], json!(id), "{word}");
        assert_eq!(
            user.get(&format!("{path}/result")).json(200)["task_id"],
            json!(id)
        );
        assert_eq!(
            user.get(&format!("{path}/logs")).json(200)["stdout"],
            "out\n"
        );
        let canceled = user.act(&format!("{path}/cancel")).json(200);
        assert_eq!(canceled, json!({"task_id": id, "canceled": false}));
        let end = user
            .events(&format!("{path}/logs?follow=true"), None)
            .last()
            .unwrap();
        assert_eq!(
            (end.name.as_str(), &end.data["exit_code"]),
            ("end", &json!(3))
        );
    }
    for (command, code, stdout) in [
        (&["task", "wait", "mine"][..], 3, ""),
        (&["task", "logs", "mine"], 0, "out\n"),
        (&["task", "logs", "-f", most], 0, "out\n"),
        (
            &["task", "cancel", "mine"],
            0,
            "the task had already ended\n",
        ),
        (&["task", "get", "mi"], 4, ""),
    ] {
        let done = cluster.run(command);
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (code, stdout),
            "{command:?}: {done:?}"
        );
    }
    assert!(
        cluster
            .run(&["task", "result", "mine"])
            .stdout
            .contains("out\n")
    );
}

/// A task in the database with this id and name; all else is as in the task `from`.
fn copy(orchestrator: &Orchestrator, from: &str, to: &str, name: Option<&str>) -> String {
    let database = Connection::open(orchestrator.data_dir.join("cynode.db")).unwrap();
    let sql = "INSERT INTO tasks SELECT ?1, user_id, 'completed', ?2, spec, summary, exit_code, created_at,
                   updated_at, started_at, updated_at, sandbox FROM tasks WHERE id = ?3";
    database.execute(sql, params![to, name, from]).unwrap();
    to.to_owned()
}

#[test]
fn ambiguous_or_foreign_task_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let [ann, bob] = ["ann", "bob"].map(|handle| orchestrator.add_user(&admin, handle));
    let get = |user: &Api, word: &str| user.get(&format!("/v1/tasks/{word}"));
    let id = |task: &Value| task["id"].as_str().unwrap().to_owned();
    let (secret, shared) = (create(&ann, "secret"), create(&ann, "shared"));
    let of_bob = create(&bob, "shared");
    // Another one's name, id and beginning of an id are as unknown as those of nobody.
    for word in [
        "secret",
        &id(&secret),
        &id(&secret)[..30],
        "nobody",
        &uuid(),
    ] {
        get(&bob, word).problem(404, "not-found");
    }
    assert_eq!(get(&bob, "shared").json(200)["id"], of_bob["id"]);
    assert_eq!(get(&ann, "shared").json(200)["id"], shared["id"]);
    // Admins see all, so a name of two users says too little, unless one is their own.
    assert_eq!(get(&admin, "secret").json(200)["id"], secret["id"]);
    let problem = get(&admin, "shared").problem(409, "conflict");
    assert!(
        problem["detail"].as_str().unwrap().contains("give an id"),
        "{problem}"
    );
    let own = create(&admin, "shared");
    assert_eq!(get(&admin, "shared").json(200)["id"], own["id"]);

    let copy = |to| copy(&orchestrator, &id(&secret), to, None);
    let first = copy("00aa11bb-2200-7000-8000-000000000001");
    let second = copy("00aa11bb-2200-7000-8000-000000000002");
    for several in [
        "00aa11bb",
        "00aa11bb-",
        "00AA11BB-2200-7000-8000-00000000000",
    ] {
        let problem = get(&ann, several).problem(409, "conflict");
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("more characters"),
            "{problem}"
        );
        get(&bob, several).problem(404, "not-found");
    }
    for too_short in ["00aa11b", "00aa11bb_", "0"] {
        get(&ann, too_short).problem(404, "not-found");
    }
    assert_eq!(get(&ann, &second).json(200)["id"], json!(second));
    // An id goes before a name, a name before the beginning of an id.
    create(&ann, &first);
    assert_eq!(get(&ann, &first).json(200)["id"], json!(first));
    let hex = create(&ann, "00aa11bb");
    assert_eq!(get(&ann, "00aa11bb").json(200)["id"], hex["id"]);
}

/// Odd ones are found as they are, doubles are not guessed at.
#[test]
fn names_of_earlier_release_are_found() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let ann = orchestrator.add_user(&orchestrator.login(), "ann");
    let get = |word: &str| ann.get(&format!("/v1/tasks/{word}"));
    let task = create(&ann, "task");
    let id = task["id"].as_str().unwrap();
    let copy = |to, name| copy(&orchestrator, id, to, Some(name));
    let odd = copy("00000000-0000-7000-8000-00000000000a", "Ödd/name ?");
    assert_eq!(get("%C3%96dd%2Fname%20%3F").json(200)["id"], json!(odd));
    copy("00000000-0000-7000-8000-00000000000b", "double");
    copy("00000000-0000-7000-8000-00000000000c", "double");
    get("double").problem(409, "conflict");
    ann.act("/v1/tasks/double/cancel").problem(409, "conflict");
    assert_eq!(create(&ann, "double")["task_name"], "double-2");
}

#[test]
fn user_name_cannot_imitate_admin_id() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &[]);
    let admin = orchestrator.login();
    let created = admin.post("/v1/tasks", &json!({"script": "true"}));
    let id = created.json(201)["id"].as_str().unwrap().to_owned();
    let mallory = orchestrator.add_user(&admin, "mallory");
    let prefix = &id[..35];
    let task = json!({"script": "true", "task_name": prefix});
    let named = mallory.post("/v1/tasks", &task).json(201);
    assert_eq!(named["task_name"], prefix);
    let found = admin.get(&format!("/v1/tasks/{prefix}")).json(200);
    assert_eq!(found["id"], json!(id));
}
