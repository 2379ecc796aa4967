//! Models of nodes: listed with their state, pulled with progress, and deleted, by calls and by commands.

use crate::support::{
    Api, ModelServer, Node, Orchestrator,
    client::{client, fails},
    eventually, eventually_eq,
    model_server::OLLAMA_IMAGE,
    process::run,
};
use serde_json::{Value, json};
use std::path::Path;

/// An orchestrator, and a node that uses a model server with these settings.
fn start(home: &Path, settings: &[&str]) -> (Orchestrator, Node, ModelServer) {
    let server = ModelServer::start(OLLAMA_IMAGE, settings);
    let port = server.api.address().rsplit_once(':').unwrap().1.to_owned();
    let orchestrator = Orchestrator::start(home, &[]);
    let flags = ["--inference", "auto", "--inference-port", &port];
    let node = Node::start(home, "box", &orchestrator.control_url, &flags);
    let admin = orchestrator.login();
    eventually("the node is ready, and the model server reported", || {
        let node = admin.call("GET", "/v1/nodes/box", &[], b"");
        let node = (node.status == 200).then(|| node.json(200))?;
        (node["status"] == "ready" && node["inference"]["running"] == true).then_some(())
    });
    (orchestrator, node, server)
}

/// Names and data of the events of a pull.
fn pull(api: &Api, model: &str) -> Vec<(String, Value)> {
    let reply = api.post("/v1/nodes/box/models:pull", &json!({"model": model}));
    reply.expect(200);
    let text = reply.text();
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    let fields = events.map(|event| {
        let (name, data) = event.split_once('\n').unwrap();
        let data = data.strip_prefix("data: ").unwrap();
        let name = name.strip_prefix("event: ").unwrap();
        (name.to_owned(), serde_json::from_str(data).unwrap())
    });
    fields.collect()
}

fn names(models: &Value) -> Vec<&str> {
    let models = models["models"].as_array().unwrap().iter();
    models
        .map(|model| model["name"].as_str().unwrap())
        .collect()
}

#[test]
fn models_are_pulled_listed_and_deleted() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, _node, server) = start(home.path(), &[]);
    let admin = orchestrator.login();
    let list = || admin.get("/v1/nodes/box/models").json(200);
    assert_eq!(list(), json!({"node_slug": "box", "models": []}));

    let events = pull(&admin, "example/tiny:1b");
    let (last, progress) = events.split_last().unwrap();
    assert_eq!(*last, ("end".to_owned(), json!({"status": "completed"})));
    assert!(
        progress.iter().all(|(name, _)| name == "progress"),
        "{events:?}"
    );
    let half = progress
        .iter()
        .find(|(_, data)| data["completed_bytes"] == 1_500_000);
    assert_eq!(half.unwrap().1["total_bytes"], 3_000_000, "{events:?}");
    let models = list();
    assert_eq!(names(&models), ["example/tiny:1b"]);
    assert_eq!(models["models"][0]["size_bytes"], 3_000_000);
    assert_eq!(models["models"][0]["loaded"], false);
    let known = || {
        let known = admin.get("/v1/models").json(200);
        known["data"].as_array().unwrap().len()
    };
    assert_eq!(known(), 1, "at the end of the pull, and not with a report");

    let prompt = json!({"model": "example/tiny:1b", "prompt": "hi", "stream": false});
    server.api.post("/api/generate", &prompt).expect(200);
    eventually_eq(
        "the report says that it is loaded",
        json!([true, 3_000_000, 4096]),
        || {
            let node = admin.get("/v1/nodes/box").json(200);
            let model = &node["inference"]["model_details"][0];
            json!([
                model["loaded"],
                model["vram_bytes"],
                model["context_length"]
            ])
        },
    );

    admin
        .call("DELETE", "/v1/nodes/box/models/example/tiny:1b", &[], b"")
        .expect(204);
    assert_eq!(known(), 0, "at the answer, and not with a report");
    assert_eq!(list()["models"], json!([]));
    let again = admin.call("DELETE", "/v1/nodes/box/models/example%2Ftiny:1b", &[], b"");
    let problem = again.problem(404, "not-found");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("example/tiny:1b"),
        "{problem}"
    );
    let audit = admin.get("/v1/audit").json(200);
    let of = |action: &str| -> Vec<Value> {
        let events = audit["events"].as_array().unwrap().iter();
        let events = events.filter(|event| event["action"] == action);
        events
            .map(|event| json!([event["outcome"], event["reason"]]))
            .collect()
    };
    assert_eq!(of("model.pull"), [json!(["success", "example/tiny:1b"])]);
    assert_eq!(of("model.delete").len(), 2, "{audit}");
}

#[test]
fn failed_pull_says_why() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, _node, _server) = start(home.path(), &[]);
    let admin = orchestrator.login();
    let (name, end) = pull(&admin, "missing:1b").pop().unwrap();
    assert_eq!((name.as_str(), &end["status"]), ("end", &json!("failed")));
    assert!(
        end["error"].as_str().unwrap().contains("does not exist"),
        "{end}"
    );
    let nobody = admin.post("/v1/nodes/nobody/models:pull", &json!({"model": "a"}));
    nobody.problem(404, "not-found");
    for wrong in ["", "-x", "a b", "../../x"] {
        let reply = admin.post("/v1/nodes/box/models:pull", &json!({"model": wrong}));
        let problem = reply.problem(400, "invalid-request");
        assert!(
            problem["detail"].as_str().unwrap().contains("`model`"),
            "{problem}"
        );
    }
}

#[test]
fn only_admins_change_models() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, _node, server) = start(home.path(), &["--env=STAND_IN_MODELS=given"]);
    let user = orchestrator.add_user(&orchestrator.login(), "ann");
    user.get("/v1/nodes/box/models").problem(403, "forbidden");
    let pull = user.post("/v1/nodes/box/models:pull", &json!({"model": "a"}));
    pull.problem(403, "forbidden");
    let delete = user.call("DELETE", "/v1/nodes/box/models/given", &[], b"");
    delete.problem(403, "forbidden");
    let tags = server.api.get("/api/tags").text();
    let tags: Value = serde_json::from_str(&tags).unwrap();
    assert_eq!(names(&tags), ["given:latest"]);
}

#[test]
fn lost_model_server_is_named() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, _node, server) = start(home.path(), &[]);
    assert_eq!(server.stop(), 0);
    let admin = orchestrator.login();
    let reply = admin.get("/v1/nodes/box/models");
    let problem = reply.problem(503, "unavailable");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("node box") && detail.contains("model server"),
        "{problem}"
    );
    let pull = admin.post("/v1/nodes/box/models:pull", &json!({"model": "a"}));
    pull.problem(503, "unavailable");
}

#[test]
fn leaving_client_ends_pull() {
    let home = tempfile::tempdir().unwrap();
    let slow = "--env=STAND_IN_PAUSE_MS=60000";
    let (orchestrator, _node, _server) = start(home.path(), &[slow]);
    let admin = orchestrator.login();
    let mut command = client(
        home.path(),
        &orchestrator.gateway_url,
        &["models", "pull", "tiny"],
    );
    command.env("CYNODE_TOKEN", admin.token());
    let mut process = crate::support::Process::start("pull", home.path(), &mut command);
    eventually("the pull has started", || {
        process.stderr().contains("starting").then_some(())
    });
    process.kill();
    let recorded = eventually("the end is recorded", || {
        let audit = admin.get("/v1/audit").json(200);
        let events = audit["events"].as_array().unwrap().clone();
        events
            .into_iter()
            .find(|event| event["action"] == "model.pull")
    });
    assert_eq!(recorded["outcome"], "failure", "{recorded}");
}

#[test]
fn models_command_lists_pulls_and_deletes() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, _node, _server) = start(home.path(), &["--env=STAND_IN_MODELS=given:7b"]);
    let admin = orchestrator.login();
    let call = |arguments: &[&str]| {
        let mut command = client(home.path(), &orchestrator.gateway_url, arguments);
        run(command.env("CYNODE_TOKEN", admin.token()))
    };
    let done = call(&["models", "pull", "tiny"]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "box has tiny\n"),
        "{done:?}"
    );
    assert!(done.stderr.contains("tiny at box: pulling "), "{done:?}");
    assert!(done.stderr.contains("writing manifest"), "{done:?}");
    let done = call(&["models"]);
    assert_eq!(done.code, 0, "{done:?}");
    for model in ["given:7b", "tiny:latest"] {
        assert!(done.stdout.contains(model), "{done:?}");
    }
    let done = call(&["models", "list", "--node", "box", "--output", "json"]);
    let listed: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(names(&listed), ["given:7b", "tiny:latest"]);
    assert_eq!(listed["models"][0]["node_slug"], "box");

    assert_eq!(call(&["models", "rm", "tiny"]).code, 0);
    let gone = call(&["models", "rm", "tiny", "--node", "box"]);
    fails(&gone, 4, "no model tiny");
    let failed = call(&["models", "pull", "missing"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (8, ""), "{failed:?}");
    assert!(
        failed
            .stderr
            .contains("error: missing at box was not pulled: "),
        "{failed:?}"
    );
    assert!(failed.stderr.contains("does not exist"), "{failed:?}");
    let wrong = call(&["models", "pull", "no/such model"]);
    fails(
        &wrong,
        6,
        "error: \"no/such model\" is not a valid model name: ",
    );
}

#[test]
fn client_says_why_no_model_answers() {
    let home = tempfile::tempdir().unwrap();
    let (orchestrator, _node, _server) = start(home.path(), &[]);
    let admin = orchestrator.login();
    let call = |token: &str, arguments: &[&str]| {
        let mut command = client(home.path(), &orchestrator.gateway_url, arguments);
        run(command.env("CYNODE_TOKEN", token))
    };
    let ask = ["chat", "-m", "x"];
    let pull = "node box: it has no model; an admin adds one with: cynode models pull";
    fails(&call(admin.token(), &ask), 4, pull);
    let listed = call(admin.token(), &["models"]);
    assert!(
        listed.code == 0 && listed.stderr.contains(pull),
        "{listed:?}"
    );
    let ann = orchestrator.add_user(&admin, "ann");
    admin.act("/v1/nodes/box/drain").expect(204);
    let drained = "node box: draining; cynode nodes resume box ends it";
    for token in [admin.token(), ann.token()] {
        fails(&call(token, &ask), 4, drained);
        let listed = call(token, &["models"]);
        assert!(listed.stderr.contains(drained), "{listed:?}");
    }
    let key = json!({"name": "k", "scopes": ["tasks"]});
    let key = ann.post("/v1/keys", &key).json(201);
    let refused = call(key["key"].as_str().unwrap(), &ask);
    fails(&refused, 3, "this API key is for tasks");
}
