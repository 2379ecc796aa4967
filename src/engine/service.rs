//! A service: a container that outlives the process that started it. Today that is the model server.
//!
//! It is identified by its name, which is unique on a host, and by its labels: the node that owns it, and a hash of
//! everything it was created from. So a later start can compare an existing container with the one that it would
//! create.

use super::{Engine, EngineError, call, container, containers_conf, labels};
use crate::digest::sha256_hex;
use serde::Deserialize;
use std::{collections::HashMap, net::SocketAddr, time::Duration};

/// Time limit for creating or removing a container; a runtime's GPU hooks take seconds.
const CHANGE_TIMEOUT: Duration = Duration::from_mins(2);
const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines of a service's log that are shown.
const LOG_TAIL_ARG: &str = "--tail=15";
/// Most bytes of a service's log that are shown, of each of its streams.
const MAX_LOG_TAIL_BYTES: usize = 2048;
/// Attempts to read the log while it is empty.
const MAX_LOG_TAIL_ATTEMPTS: u32 = 30;
const LOG_TAIL_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Properties of a service.
pub struct ServiceSpec {
    /// Name of the container, unique on this host.
    pub name: String,
    /// Id of the image, whose own command is run.
    pub image: String,
    /// Kind of service, in one word.
    pub service: &'static str,
    /// UUID of the node that owns it.
    pub node_uuid: String,
    /// Slug of that node, for people.
    pub slug: String,
    /// Environment. Not for secrets: podman shows it to every user of this podman.
    pub env: Vec<(&'static str, String)>,
    /// Address of the host where it is reached, and its own port.
    pub publish: (SocketAddr, u16),
    /// Named volume, and its mount point.
    pub volume: (String, &'static str),
    /// Further arguments, such as devices.
    pub extra: &'static [&'static str],
}

/// State of a service in podman.
#[derive(Debug)]
pub struct Service {
    /// Whether its container runs.
    pub running: bool,
    /// Exit code of its last run, and 0 before the first has ended.
    pub exit_code: i32,
    labels: HashMap<String, String>,
}

impl Service {
    /// Value of a label; empty where it is missing.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

impl ServiceSpec {
    /// Hash of everything that its container is created from. A container with another hash has to be replaced.
    pub fn spec_hash(&self, engine: &Engine) -> String {
        sha256_hex(self.run_args(engine).join("\n"))
    }

    fn run_args(&self, engine: &Engine) -> Vec<String> {
        let mut list = container::base_args(engine);
        let service = [
            "--detach",
            // The node restarts it.
            "--restart=no",
            // The end of its log says why it ended; a log of this kind can be limited.
            "--log-driver=k8s-file",
            "--log-opt=max-size=10mb",
            // With the host's network, which containers.conf may choose for all containers, podman would not publish
            // the port, and the service would listen on any address.
            "--network=private",
        ];
        list.extend(service.map(str::to_owned));
        list.push(format!("--oom-score-adj={}", oom_score(own_oom_score())));
        list.push(format!("--name={}", self.name));
        let (address, port) = self.publish;
        list.push(format!("--publish={address}:{port}"));
        let (volume, path) = &self.volume;
        list.push(format!("--volume={volume}:{path}"));
        let env = self.env.iter();
        list.extend(env.map(|(name, value)| format!("--env={name}={value}")));
        list.extend(self.extra.iter().map(|&argument| argument.to_owned()));
        let known = [
            (labels::NODE, self.node_uuid.clone()),
            (labels::SLUG, self.slug.clone()),
            (labels::SERVICE, self.service.to_owned()),
        ];
        list.extend(container::label_args(&known));
        list.push(self.image.clone());
        list
    }
}

/// OOM score of a service. It doesn't inherit the protection that a node's systemd unit gives the node: it uses most
/// of the memory itself, and is restarted. A higher score can't be lowered without privileges.
fn oom_score(own: i32) -> i32 {
    own.max(0)
}

fn own_oom_score() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

impl Engine {
    /// Creates and starts a service.
    pub async fn service_run(&self, spec: &ServiceSpec) -> Result<(), EngineError> {
        let mut arguments = spec.run_args(self);
        let at = arguments.len() - 1;
        let hash = [(labels::SPEC_HASH, spec.spec_hash(self))];
        arguments.splice(at..at, container::label_args(&hash));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.call(&arguments, CHANGE_TIMEOUT).await.map(drop)
    }

    /// Starts a service that has ended.
    pub async fn service_start(&self, name: &str) -> Result<(), EngineError> {
        let start = ["start", containers_conf::NO_DEFAULT_MOUNTS_ARG, name];
        self.call(&start, CHANGE_TIMEOUT).await.map(drop)
    }

    /// Ends and removes a service and its unnamed volumes. Succeeds where it doesn't exist.
    pub async fn service_remove(&self, name: &str) -> Result<(), EngineError> {
        let remove = ["rm", "--force", "--ignore", "--volumes", "--time=5", name];
        self.call(&remove, CHANGE_TIMEOUT).await.map(drop)
    }

    /// State of the container of this name, which may belong to another owner. `None` where it doesn't exist.
    pub async fn service_find(&self, name: &str) -> Result<Option<Service>, EngineError> {
        #[derive(Deserialize)]
        struct Inspected {
            #[serde(rename = "State")]
            state: State,
            #[serde(rename = "Config")]
            config: Config,
        }
        #[derive(Deserialize)]
        struct State {
            #[serde(rename = "Running")]
            running: bool,
            #[serde(rename = "ExitCode")]
            exit_code: i32,
        }
        #[derive(Deserialize)]
        struct Config {
            #[serde(rename = "Labels")]
            labels: Option<HashMap<String, String>>,
        }
        let answer = match self
            .call(&["container", "inspect", name], INSPECT_TIMEOUT)
            .await
        {
            Err(EngineError::Failed { message, .. }) if message.contains("no such container") => {
                return Ok(None);
            }
            answer => answer?,
        };
        let found: Vec<Inspected> =
            serde_json::from_str(&answer).map_err(|error| EngineError::UnexpectedOutput {
                call: "container inspect".to_owned(),
                reason: error.to_string(),
            })?;
        Ok(found.into_iter().next().map(|container| Service {
            running: container.state.running,
            exit_code: container.state.exit_code,
            labels: container.config.labels.unwrap_or_default(),
        }))
    }

    /// Names of all containers of this kind of service that a node owns.
    pub async fn service_list(
        &self,
        node_uuid: &str,
        service: &str,
    ) -> Result<Vec<String>, EngineError> {
        let of_node = format!("--filter=label={}={node_uuid}", labels::NODE);
        let of_kind = format!("--filter=label={}={service}", labels::SERVICE);
        let list = ["ps", "--all", "--format={{.Names}}", &of_node, &of_kind];
        let names = self.call(&list, INSPECT_TIMEOUT).await?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// End of the log of a service that has ended, from both of its streams. Text for people, also where there is
    /// none.
    pub async fn service_log_tail(&self, name: &str) -> String {
        // Under load the end of a container is known before its log is complete.
        for _ in 0..MAX_LOG_TAIL_ATTEMPTS {
            match self.log_tail(name).await {
                Ok(tail) if tail.is_empty() => tokio::time::sleep(LOG_TAIL_RETRY_DELAY).await,
                Ok(tail) => return tail,
                Err(error) => return format!("unknown, since {error}"),
            }
        }
        "none".to_owned()
    }

    async fn log_tail(&self, name: &str) -> Result<String, EngineError> {
        let mut stderr = String::new();
        let on_line = |line: &str| {
            if stderr.len() < MAX_LOG_TAIL_BYTES {
                stderr.push_str(line);
                stderr.push('\n');
            }
        };
        let arguments = ["logs", LOG_TAIL_ARG, name];
        let stdout = call(&self.program, &arguments, INSPECT_TIMEOUT, on_line).await?;
        let stdout: String = stdout.chars().take(MAX_LOG_TAIL_BYTES).collect();
        Ok(format!("{stdout}{stderr}").trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_does_not_inherit_protection() {
        assert_eq!([-500, 0, 200].map(oom_score), [0, 0, 200]);
    }
}
