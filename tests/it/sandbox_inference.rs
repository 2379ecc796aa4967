//! Models inside of a sandbox: what a job reaches that may use them, and that no other does.

use crate::support::{
    Call, Cluster, eventually,
    image::{USER_IMAGE, podman},
    model_node::{chat, completion, model_node},
    models::{STREAM, cluster, delta, model_server},
};
use serde_json::{Value, json};
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Shell function that asks a model over loopback.
const ASK: &str = r#"ask() { wget -q -O - --header 'Content-Type: application/json' --post-data "$2" "$OPENAI_BASE_URL/$1"; }
"#;

fn asked(call: &Call) -> &str {
    let text = call.body.pointer("/messages/0/content");
    text.and_then(Value::as_str).unwrap()
}

/// Runs a script to its end in a sandbox of `box` that may use models; its result.
fn run(cluster: &Cluster, script: &str, more: Value) -> Value {
    let mut task = json!({"script": script, "use_inference": true, "node": "box"});
    task.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let id = cluster.create(&task);
    cluster.finish(&id);
    let result = cluster.result(&id);
    serde_json::from_str(result["jobs"][0]["result"].as_str().unwrap()).unwrap()
}

#[test]
fn job_asks_models_of_all_nodes() {
    let (server, calls) = model_server(|call, answer| {
        answer.status(200, &completion(&format!("echo {}", asked(call))));
    });
    let cluster = cluster(&server);
    let far = model_node(
        &cluster.orchestrator,
        "far",
        &["far"],
        |call, answer| match call.is_model_call("/v1/chat/completions") {
            true => answer.status(200, &completion(&format!("far {}", asked(call)))),
            false => answer.status(200, &json!({"models": [{"name": "far"}]})),
        },
    );
    eventually("both models are known", || {
        let list = cluster.user.get("/v1/models").json(200);
        (list["data"].as_array()?.len() == 3).then_some(())
    });
    let script = format!(
        "{ASK}ask chat/completions '{}' && echo && ask chat/completions '{}' && echo && wget -q -O - $OLLAMA_HOST/api/tags",
        chat("a"),
        chat("far"),
    );
    for image in [json!({}), json!({"image": USER_IMAGE})] {
        let result = run(&cluster, &script, image);
        assert_eq!(result["exit_code"], 0, "{result}");
        let lines = result["stdout"].as_str().unwrap().lines();
        let lines: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let text = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
        assert_eq!(text(&lines[0]), "echo a secret question");
        assert_eq!(text(&lines[1]), "far a secret question");
        let models = lines[2]["models"].as_array().unwrap().iter();
        let mut models: Vec<_> = models.map(|model| model["name"].as_str()).collect();
        models.sort_unstable();
        assert_eq!(models, ["a", "far", "loaded"].map(Some), "{result}");
    }
    let sent = calls.all();
    let chat = sent.iter().find(|call| call.path == "/v1/chat/completions");
    let mut headers = chat.unwrap().headers.iter();
    assert!(!headers.any(|(name, _)| name == "authorization" || name.starts_with("cynode")));
    drop(far);
    let usage = cluster.user.get("/v1/usage?by=task,model").json(200);
    let sums = usage["usage"].as_array().unwrap();
    assert_eq!(sums.len(), 4, "{usage}");
    for sum in sums {
        assert!(sum["task_id"].is_string(), "{usage}");
        assert_eq!(
            (&sum["requests"], &sum["prompt_tokens"]),
            (&json!(1), &json!(3))
        );
    }
    let audit = cluster
        .user
        .get("/v1/audit?action=inference.request")
        .json(200);
    let event = audit["events"][0].to_string();
    assert!(
        event.contains("task ") && !event.contains("secret"),
        "{event}"
    );
}

#[test]
fn sandbox_reaches_models_and_nothing_else() {
    let (server, _calls) = model_server(|_, answer| answer.status(200, &completion("x")));
    let cluster = cluster(&server);
    let script = "env | grep -E '^(OLLAMA|OPENAI|INFERENCE)' | sort; ls /proc/self/fd | tr '\\n' ' '; echo; \
        ls /sys/class/net; ls -A /run/cynode; mount | grep -c ' /run/cynode ' ; \
        cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp | grep -E ' 0A |: .*:.* 07 ' | awk '{print $2}' | sort -u; \
        for port in 22 80 443 12080 12082 12090; do nc -w 1 127.0.0.1 $port </dev/null && echo open $port; done; \
        nc -w 1 192.0.2.1 80 </dev/null && echo network; true";
    let result = run(&cluster, script, json!({"env": {"OPENAI_API_KEY": "own"}}));
    let expected = "INFERENCE_PROXY_URL=http+unix://%2Frun%2Fcynode%2Finference-proxy.sock\n\
        OLLAMA_BASE_URL=http://localhost:11434\nOLLAMA_HOST=http://localhost:11434\nOPENAI_API_KEY=own\n\
        OPENAI_BASE_URL=http://localhost:11434/v1\n0 1 2 3 \nlo\ninference-proxy.sock\n1\n";
    let stdout = result["stdout"].as_str().unwrap();
    let listening = stdout
        .strip_prefix(expected)
        .unwrap_or_else(|| panic!("{result}"));
    // 11434 on loopback, of IPv4 and, where the host has it, of IPv6.
    for address in listening.lines() {
        assert!(address.ends_with(":2CAA"), "{result}");
    }
    assert!(listening.contains("0100007F:2CAA"), "{result}");
}

#[test]
fn job_without_inference_has_no_listener() {
    let (server, _calls) = model_server(|_, answer| answer.refuse(500));
    let cluster = cluster(&server);
    let script = "ls -d /run/cynode; nc -w 1 127.0.0.1 11434 </dev/null && echo open; cat /proc/net/tcp | wc -l; \
        env | grep -E '^(OLLAMA|OPENAI|INFERENCE)'; true";
    let result = run(&cluster, script, json!({"use_inference": false}));
    assert_eq!(result["stdout"], "1\n", "{result}");
}

#[test]
fn other_calls_and_large_bodies_are_refused() {
    let (server, calls) = model_server(|_, answer| answer.status(200, &completion("x")));
    let cluster = cluster(&server);
    // nc closes its side with the end of its input, and a server takes that for a client that has left.
    let request = |method: &str, path: &str, length: usize, body: &str| {
        format!(
            "{{ printf '{method} {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\nContent-Length: {length}\\r\\n\\r\\n'; \
             {body}; sleep 3; }} | nc 127.0.0.1 11434 | tr -d '\\r'; echo"
        )
    };
    let model = "printf '{\"model\":\"a\"}'";
    let script = [
        request("POST", "/api/pull", 13, model),
        request("DELETE", "/api/delete", 13, model),
        request("POST", "/api/create", 13, model),
        request(
            "POST",
            "/v1/chat/completions",
            11 << 20,
            "head -c 11534336 /dev/zero",
        ),
        request(
            "POST",
            "/v1/chat/completions",
            19,
            "printf '{\"model\":\"missing\"}'",
        ),
        request("POST", "/v1/messages", 9, "printf '{\"model\":'"),
    ]
    .join("\n");
    let result = run(&cluster, &script, json!({}));
    let stdout = result["stdout"].as_str().unwrap();
    let heads: Vec<_> = stdout
        .lines()
        .filter(|line| line.starts_with("HTTP/1.1"))
        .map(|line| line.split(' ').nth(1).unwrap())
        .collect();
    assert_eq!(
        heads,
        ["403", "403", "403", "413", "404", "400"],
        "{result}"
    );
    let bodies: Vec<Value> = stdout
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert!(bodies[0]["error"].is_string() && bodies[1]["error"].is_string());
    assert_eq!(bodies[3]["error"]["code"], "payload_too_large", "{result}");
    assert_eq!(bodies[4]["error"]["code"], "model_not_found", "{result}");
    assert_eq!(
        bodies[5]["error"]["type"], "invalid_request_error",
        "{result}"
    );
    let passed = |call: &Call| call.path.contains("chat") || call.path.contains("pull");
    assert!(!calls.all().iter().any(passed));
}

#[test]
fn cancel_of_job_ends_its_calls() {
    let closed = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&closed);
    let (server, _calls) = model_server(move |_, answer| {
        let mut answer = answer.begin(STREAM);
        answer.add(&delta("endless"));
        answer.until_closed();
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let cluster = cluster(&server);
    let mut request = chat("a");
    request["stream"] = true.into();
    let script = format!("{ASK}ask chat/completions '{request}'");
    let id = cluster.create(&json!({"script": script, "use_inference": true}));
    cluster.printed(&id, "endless");
    let cancel = format!("/v1/tasks/{id}/cancel?force=true");
    cluster.user.act(&cancel).expect(200);
    eventually("the call is closed", || {
        (closed.load(Ordering::SeqCst) == 1).then_some(())
    });
    cluster.finish(&id);
}

#[test]
fn unix_socket_serves_the_same() {
    let (server, _calls) = model_server(|_, answer| answer.refuse(500));
    let cluster = cluster(&server);
    let id = cluster.create(&json!({"script": "echo on; sleep 600", "use_inference": true}));
    cluster.printed(&id, "on");
    let filter = format!("label=io.cynode.task-id={id}");
    let pid = podman(&["ps", "--filter", &filter, "--format", "{{.Pid}}"]).unwrap();
    let path = format!("/proc/{}/root/run/cynode/inference-proxy.sock", pid.trim());
    let mut socket = UnixStream::connect(path).unwrap();
    socket
        .write_all(b"GET /v1/models/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"id\":\"a\""),
        "{answer}"
    );
    cluster
        .user
        .act(&format!("/v1/tasks/{id}/cancel?force=true"))
        .expect(200);
    cluster.finish(&id);
}
