//! A Worker API alone, and the jobs that tests send it.

use super::{
    Api, IMAGE, Reply,
    cluster::secret_file,
    image,
    podman_host::within,
    server::{Server, ends_clean, is_a_server, role},
    stream::Lines,
};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// The token of every worker that a test starts alone.
pub(crate) const WORKER_TOKEN: &str = "a worker token of the tests";

/// A Worker API by itself.
pub(crate) struct Worker {
    server: Server,
    /// Its API, with the right token.
    pub(crate) api: Api,
    home: TempDir,
    arguments: Vec<String>,
    /// Script that prepares a mount namespace of its own, and then runs the worker.
    namespace: Option<String>,
}

impl Worker {
    /// Starts one, with what the operator says in `more`.
    pub(crate) fn start(more: &[&str]) -> Self {
        Self::start_with(more, &[])
    }

    /// Starts one in an environment of more variables.
    pub(crate) fn start_with_env(variables: &[(&str, &str)]) -> Self {
        Self::start_with(&[], variables)
    }

    /// Starts one with both.
    pub(crate) fn start_with(more: &[&str], variables: &[(&str, &str)]) -> Self {
        image::ready();
        let home = tempfile::tempdir().unwrap();
        let arguments = more.iter().map(|&word| word.to_owned()).collect();
        Self::launch(home, arguments, variables, None)
    }

    /// Starts one in a mount namespace of its own, which a script prepares; only root can.
    pub(crate) fn start_in_namespace(more: &[&str], script: &str) -> Self {
        image::ready();
        let home = tempfile::tempdir().unwrap();
        let arguments = more.iter().map(|&word| word.to_owned()).collect();
        let namespace = format!("set -e; {script}; exec \"$@\"");
        Self::launch(home, arguments, &[], Some(namespace))
    }

    fn launch(
        home: TempDir,
        arguments: Vec<String>,
        variables: &[(&str, &str)],
        namespace: Option<String>,
    ) -> Self {
        let (server, api) = serve(home.path(), &arguments, variables, namespace.as_deref());
        Self {
            server,
            api,
            home,
            arguments,
            namespace,
        }
    }

    /// Ends it as a power cut does, and starts it again with its state.
    pub(crate) fn restart(&mut self) {
        self.server.process.kill();
        self.start_again();
    }

    /// Starts it again with its state.
    pub(crate) fn start_again(&mut self) {
        let namespace = self.namespace.as_deref();
        (self.server, self.api) = serve(self.home.path(), &self.arguments, &[], namespace);
    }

    /// The body that runs a command in the plain image, as a fresh job.
    pub(crate) fn job(command: &[&str]) -> Value {
        let sandbox = json!({"image": IMAGE, "command": command});
        json!({"version": 1, "task_id": super::uuid(), "job_id": super::uuid(), "sandbox": sandbox})
    }

    /// The same in another image.
    pub(crate) fn job_in(image: &str, command: &[&str]) -> Value {
        let mut job = Self::job(command);
        job["sandbox"]["image"] = image.into();
        job
    }

    /// The same for a shell script.
    pub(crate) fn script(script: &str) -> Value {
        Self::job(&["sh", "-c", script])
    }

    /// The same with other values for fields of the sandbox.
    pub(crate) fn script_with(script: &str, changes: Value) -> Value {
        let mut job = Self::script(script);
        for (name, value) in changes.as_object().unwrap() {
            job["sandbox"][name] = value.clone();
        }
        job
    }

    /// Sends a job.
    pub(crate) fn send(&self, job: &Value) -> Reply {
        self.api.post("/v1/worker/jobs:run", job)
    }

    /// Sends a job and reads its result.
    pub(crate) fn run(&self, job: &Value) -> Value {
        self.send(job).json(200)
    }

    /// Sends a job and reads its events as they come, from the one after `after`.
    pub(crate) fn follow(&self, job: &Value, after: u64) -> impl Iterator<Item = Value> + use<> {
        let headers = [
            ("Content-Type", "application/json"),
            ("Accept", "application/x-ndjson"),
        ];
        let path = format!("/v1/worker/jobs:run?after={after}");
        parsed(
            self.api
                .lines("POST", &path, &headers, job.to_string().as_bytes()),
        )
    }

    /// Reads the events of a job that it has.
    pub(crate) fn attach(&self, job: &Value, after: u64) -> impl Iterator<Item = Value> + use<> {
        let path = format!(
            "/v1/worker/jobs/{}?after={after}",
            job["job_id"].as_str().unwrap()
        );
        parsed(
            self.api
                .lines("GET", &path, &[("Accept", "application/x-ndjson")], b""),
        )
    }

    /// Cancels a job.
    pub(crate) fn send_cancel(&self, job: &Value) {
        self.api
            .act(&format!("{}:cancel", Self::path(job)))
            .expect(200);
    }

    /// Lets it forget a job.
    pub(crate) fn forget(&self, job: &Value) {
        let reply = self.api.call("DELETE", &Self::path(job), &[], b"");
        reply.expect(204);
    }

    /// The path of a job that was sent.
    pub(crate) fn path(job: &Value) -> String {
        format!("/v1/worker/jobs/{}", job["job_id"].as_str().unwrap())
    }
}

fn serve(
    home: &Path,
    arguments: &[String],
    variables: &[(&str, &str)],
    namespace: Option<&str>,
) -> (Server, Api) {
    let token = secret_file(home, "token", WORKER_TOKEN);
    let fixed = ["--worker-listen", "127.0.0.1:0", "--token-file", &token];
    let mut command = role(home, "worker", &home.join("worker"));
    command
        .args(fixed)
        .args(arguments)
        .env("CYNODE_MAX_CONCURRENCY", "4")
        .envs(variables.iter().copied());
    if let Some(script) = namespace {
        command = within(&["unshare", "--mount", "sh", "-c", script], "sh", &command);
    }
    let mut server = Server::launch(home, "worker", &mut command);
    let api = Api::new(&server.address("worker")).with_token(WORKER_TOKEN);
    (server, api)
}

/// Output of a stream according to events.
pub(crate) fn printed(events: &[Value], stream: &str) -> String {
    let of_stream = events.iter().filter(|event| event["event"] == stream);
    of_stream
        .map(|event| event["data"].as_str().unwrap())
        .collect()
}

/// Lines of JSON, parsed.
fn parsed(lines: Lines) -> impl Iterator<Item = Value> {
    lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
}

is_a_server!(Worker);
ends_clean!(Worker);
