//! The main use over the wire: log in, create a task, see it run in a sandbox, read its result.

use crate::support::Cluster;
use serde_json::{Value, json};

#[test]
fn task_runs_and_returns_its_result() {
    let cluster = Cluster::start();
    let reply = cluster.user.post(
        "/v1/tasks",
        &json!({"command": ["echo", "hello"], "task_name": "greeting"}),
    );
    let created = reply.json(201);
    let id = created["id"].as_str().unwrap();
    assert_eq!(
        created["status"], "queued",
        "immediately, without waiting for the job"
    );
    assert_eq!(created["task_id"], created["id"]);
    assert_eq!(
        reply.header("location"),
        Some(format!("/v1/tasks/{id}").as_str())
    );

    let task = cluster.finish(id);
    assert_eq!(
        (&task["status"], &task["exit_code"]),
        (&json!("completed"), &json!(0)),
        "{task}"
    );
    assert_eq!(task["task_name"], "greeting");
    assert_eq!(task["command"], json!(["echo", "hello"]));
    assert!(
        task["summary"].as_str().unwrap().starts_with("exit 0"),
        "{task}"
    );
    let times = ["created_at", "started_at", "ended_at"]
        .map(|field| task[field].as_str().unwrap().to_owned());
    assert!(
        times.is_sorted() && times.iter().all(|time| time.ends_with('Z')),
        "{times:?}"
    );

    let result = cluster.result(id);
    assert_eq!(
        (&result["task_id"], &result["status"]),
        (&json!(id), &json!("completed"))
    );
    let job = &result["jobs"][0];
    assert_eq!(result["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&job["status"], &job["attempt"], &job["node_slug"]),
        (&json!("completed"), &json!(1), &json!("box"))
    );
    let object = &job["result_object"];
    let text: Value = serde_json::from_str(job["result"].as_str().unwrap()).unwrap();
    assert_eq!(&text, object, "result is result_object as a string");
    assert_eq!(
        (&object["stdout"], &object["stderr"]),
        (&json!("hello\n"), &json!(""))
    );
    assert_eq!(
        (&object["exit_code"], &object["job_id"]),
        (&json!(0), &job["id"])
    );
    let logs = cluster.user.get(&format!("/v1/tasks/{id}/logs")).json(200);
    let texts = [&logs["task_id"], &logs["stdout"], &logs["stderr"]];
    assert_eq!(texts, [&json!(id), &json!("hello\n"), &json!("")]);
}

#[test]
fn failed_command_is_not_retried() {
    let cluster = Cluster::start();
    let id = cluster.create(&json!({"command": ["sh", "-c", "echo tried; exit 7"]}));
    let task = cluster.finish(&id);
    assert_eq!(
        (&task["status"], &task["exit_code"]),
        (&json!("failed"), &json!(7)),
        "{task}"
    );
    let job = &cluster.result(&id)["jobs"][0];
    assert_eq!(
        (&job["status"], &job["attempt"]),
        (&json!("failed"), &json!(1))
    );
    assert_eq!(
        (
            &job["result_object"]["exit_code"],
            &job["result_object"]["stdout"]
        ),
        (&json!(7), &json!("tried\n"))
    );

    let late = cluster.finish(
        &cluster.create(&json!({"script": "echo before; sleep 1000", "timeout_seconds": 1})),
    );
    assert_eq!(
        (&late["status"], late.get("exit_code")),
        (&json!("failed"), None),
        "{late}"
    );
    let job = &cluster.result(late["id"].as_str().unwrap())["jobs"][0];
    assert_eq!(
        (&job["status"], &job["result_object"]["stdout"]),
        (&json!("timeout"), &json!("before\n"))
    );

    let missing = cluster
        .finish(&cluster.create(&json!({"script": "true", "image": "localhost/cynode-not-there"})));
    assert_eq!(missing["status"], "failed");
    assert!(
        missing["summary"]
            .as_str()
            .unwrap()
            .contains("image-not-found"),
        "{missing}"
    );
}

#[test]
fn command_can_be_given_three_ways() {
    let cluster = Cluster::start();
    let cases = [
        (
            json!({"command": ["echo", "$HOME", "a  b"]}),
            "$HOME a  b\n",
        ),
        (json!({"script": "cd /tmp && pwd | tr a-z A-Z"}), "/TMP\n"),
        (
            json!({"prompt": "echo first\necho second", "input_mode": "commands"}),
            "first\nsecond\n",
        ),
        (
            json!({"prompt": "echo $A", "input_mode": "script", "env": {"A": "b"}}),
            "b\n",
        ),
        (
            json!({"script": "id -u", "image": "localhost/cynode-test-user"}),
            "1000\n",
        ),
        (
            json!({"script": "echo known", "something": {"un": "known"}, "network_policy": "none"}),
            "known\n",
        ),
    ];
    for (task, stdout) in cases {
        let id = cluster.create(&task);
        assert_eq!(cluster.finish(&id)["status"], "completed", "{task}");
        assert_eq!(
            cluster.result(&id)["jobs"][0]["result_object"]["stdout"],
            stdout,
            "{task}"
        );
    }
}

#[test]
fn task_pages_list_newest_first() {
    let cluster = Cluster::start();
    let ids: Vec<String> = (0..5)
        .map(|n| cluster.create(&json!({"script": "true", "task_name": format!("n {}", n % 2), "node_labels": ["nowhere"]})))
        .collect();
    let newest: Vec<&String> = ids.iter().rev().collect();
    let list = |query: &str| cluster.user.get(&format!("/v1/tasks?{query}")).json(200);
    let listed = |list: &Value| -> Vec<String> {
        list["tasks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|task| task["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        listed(&list("")),
        newest.iter().map(|id| (*id).clone()).collect::<Vec<_>>()
    );
    for step in ["cursor", "offset"] {
        let (mut query, mut seen) = ("limit=2".to_owned(), Vec::new());
        loop {
            let page = list(&query);
            seen.extend(listed(&page));
            let next = &page[format!("next_{step}")];
            if next.is_null() || next == "" {
                break;
            }
            query = format!("limit=2&{step}={}", next.to_string().trim_matches('"'));
        }
        assert_eq!(seen.iter().collect::<Vec<_>>(), newest, "by {step}");
    }
    assert_eq!(
        listed(&list("name=n%201")),
        [ids[3].clone(), ids[1].clone()]
    );
    assert_eq!(
        listed(&list("name=n+1&status=queued&limit=1")),
        [ids[3].clone()]
    );
    assert_eq!(listed(&list("status=running")), Vec::<String>::new());
    for id in &ids {
        assert_eq!(
            cluster
                .user
                .act(&format!("/v1/tasks/{id}/cancel"))
                .json(200)["canceled"],
            true
        );
    }
    assert_eq!(listed(&list("status=canceled")).len(), 5);
}

#[test]
fn repeated_idempotency_key_returns_first_answer() {
    let cluster = Cluster::start();
    let send = |key: &str, body: &str| {
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key),
        ];
        cluster
            .user
            .call("POST", "/v1/tasks", &headers, body.as_bytes())
    };
    let first = send("a key", "{\"script\": \"echo once\"}").json(201)["id"].clone();
    let repeat = send("a key", "{ \"script\":\"echo once\" }");
    assert_eq!(repeat.json(201)["id"], first);
    assert!(
        repeat
            .header("location")
            .unwrap()
            .ends_with(first.as_str().unwrap())
    );
    send("a key", "{\"script\": \"echo twice\"}").problem(409, "idempotency-key-reused");
    assert_ne!(
        send("another", "{\"script\": \"echo once\"}").json(201)["id"],
        first
    );
    let both: Vec<Value> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| send("at once", "{\"script\": \"true\"}").json(201)["id"].clone())
            })
            .collect();
        senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .collect()
    });
    assert!(both.iter().all(|id| *id == both[0]), "{both:?}");
    let tasks = cluster.user.get("/v1/tasks").json(200);
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 3, "{tasks}");
    for task in tasks["tasks"].as_array().unwrap() {
        cluster.finish(task["id"].as_str().unwrap());
    }
}

#[test]
fn concurrent_tasks_get_their_own_results() {
    let cluster = Cluster::start();
    let ids: Vec<String> = (0..12)
        .map(|n| cluster.script(&format!("echo {n}; exit {n}")))
        .collect();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(
            cluster.finish(id)["status"],
            if n == 0 { "completed" } else { "failed" }
        );
        let result = &cluster.result(id)["jobs"][0]["result_object"];
        assert_eq!(
            (&result["stdout"], &result["exit_code"]),
            (&json!(format!("{n}\n")), &json!(n))
        );
    }
}

#[test]
fn script_of_256_kib_runs() {
    let cluster = Cluster::start();
    let script = |length: usize| {
        let mut script = "echo \"$0 $# $-\"; id -u; readlink /proc/self/exe; : '".to_owned();
        let end = "'\n(exit 4); exit $?\n";
        script += &"x".repeat(length - script.len() - end.len());
        script + end
    };
    for image in ["localhost/cynode-test", "localhost/cynode-test-user"] {
        // Below the limit of an argument, around it, and the longest.
        let outcomes = [1000, 120 * 1024, 128 * 1024 - 1, 128 * 1024, 256 * 1024].map(|length| {
            let id = cluster.create(&json!({"script": script(length), "image": image}));
            assert_eq!(cluster.finish(&id)["exit_code"], 4);
            let result = &cluster.result(&id)["jobs"][0]["result_object"];
            (result["stdout"].clone(), result["stderr"].clone())
        });
        let uid = if image.ends_with("user") { "1000" } else { "0" };
        let stdout = outcomes[0].0.as_str().unwrap();
        assert!(stdout.starts_with("/bin/sh 0 "), "{stdout}");
        assert!(stdout.contains(&format!("\n{uid}\n")), "{stdout}");
        for outcome in &outcomes {
            assert_eq!(outcome, &outcomes[0], "{image}");
        }
    }
    let too_long = json!({"script": script(256 * 1024 + 1)});
    let problem = cluster
        .user
        .post("/v1/tasks", &too_long)
        .problem(400, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "#/script");
}
