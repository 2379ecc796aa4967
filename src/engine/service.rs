//! A container that goes on by itself, whether or not we do: today the model server.
//!
//! It is known by its name, which podman gives only once on a host, and by its labels: whose it
//! is, and a hash of everything it was made from. So a later start of ours finds out whether a
//! container that it finds is the one that it would make.

use super::{Engine, EngineError, call, container, containers_conf, labels};
use crate::digest::sha256_hex;
use serde::Deserialize;
use std::{collections::HashMap, net::SocketAddr, time::Duration};

/// How long podman may take to make or to remove a container; a runtime's GPU hooks take seconds.
const CHANGE_TIMEOUT: Duration = Duration::from_mins(2);
const INSPECT_TIMEOUT: Duration = Duration::from_secs(30);
/// What of its last words is shown, in lines and about so many bytes.
const LOG_TAIL_ARG: &str = "--tail=15";
const MAX_LOG_TAIL_BYTES: usize = 2048;
/// How often, and after which backoff, they are asked for while there are none.
const LOG_TAIL_ATTEMPTS: u32 = 10;
const LOG_TAIL_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Everything about a service.
pub struct ServiceSpec {
    /// Unique on this host.
    pub name: String,
    /// Its image, by id; that image's own command is run.
    pub image: String,
    /// What it is, in one word.
    pub service: &'static str,
    /// Whose it is.
    pub node_uuid: String,
    /// The same for people.
    pub slug: String,
    /// Variables; nothing secret, since podman shows them to all who may ask it.
    pub env: Vec<(&'static str, String)>,
    /// The one address of the host at which it is reached, and its own port.
    pub publish: (SocketAddr, u16),
    /// A named volume, and where it is mounted.
    pub volume: (String, &'static str),
    /// More arguments, such as devices.
    pub extra: &'static [&'static str],
}

/// A service as podman knows it.
#[derive(Debug)]
pub struct Service {
    /// Whether it runs.
    pub running: bool,
    labels: HashMap<String, String>,
}

impl Service {
    /// The value of a label; empty when it has none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

impl ServiceSpec {
    /// A hash of all that a container is made from: with another one it has to be made anew.
    pub fn spec_hash(&self, engine: &Engine) -> String {
        sha256_hex(self.run_args(engine).join("\n"))
    }

    fn run_args(&self, engine: &Engine) -> Vec<String> {
        let mut list = container::base_args(engine);
        let service = [
            "--detach",
            // We look after it ourselves.
            "--restart=no",
            // Its last words tell why it ended; a file of this kind can be bounded.
            "--log-driver=k8s-file",
            "--log-opt=max-size=10mb",
            // With the host's network, which containers.conf may choose for all, podman would publish
            // nothing, and the service would listen wherever it likes.
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

/// OOM score of a service: it doesn't inherit the protection that a node has by its unit, since it takes most
/// memory itself and is started again. A higher score can't be lowered without privileges.
fn oom_score(own: i32) -> i32 {
    own.max(0)
}

fn own_oom_score() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

impl Engine {
    /// Makes and starts a service.
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

    /// Ends and removes a service, and volumes that have no name; fine when there is none.
    pub async fn service_remove(&self, name: &str) -> Result<(), EngineError> {
        let remove = ["rm", "--force", "--ignore", "--volumes", "--time=5", name];
        self.call(&remove, CHANGE_TIMEOUT).await.map(drop)
    }

    /// The container of this name, whoever made it.
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
            answered => answered?,
        };
        let found: Vec<Inspected> =
            serde_json::from_str(&answer).map_err(|error| EngineError::UnexpectedOutput {
                call: "container inspect".to_owned(),
                reason: error.to_string(),
            })?;
        Ok(found.into_iter().next().map(|container| Service {
            running: container.state.running,
            labels: container.config.labels.unwrap_or_default(),
        }))
    }

    /// The names of all containers that are this service of this node.
    pub async fn service_list(
        &self,
        node_uuid: &str,
        service: &str,
    ) -> Result<Vec<String>, EngineError> {
        let ours = format!("--filter=label={}={node_uuid}", labels::NODE);
        let these = format!("--filter=label={}={service}", labels::SERVICE);
        let list = ["ps", "--all", "--format={{.Names}}", &ours, &these];
        let names = self.call(&list, INSPECT_TIMEOUT).await?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    /// What a service that has ended said last, on both of its streams.
    pub async fn service_log_tail(&self, name: &str) -> String {
        // Under load its end is known before its log is complete.
        for _ in 0..LOG_TAIL_ATTEMPTS {
            let tail = self.log_tail(name).await;
            match tail {
                Ok(tail) if tail.is_empty() => tokio::time::sleep(LOG_TAIL_RETRY_DELAY).await,
                Ok(tail) => return tail,
                Err(error) => return format!("unknown, since {error}"),
            }
        }
        "none".to_owned()
    }

    async fn log_tail(&self, name: &str) -> Result<String, EngineError> {
        let mut said = String::new();
        let note = |line: &str| {
            if said.len() < MAX_LOG_TAIL_BYTES {
                said.push_str(line);
                said.push('\n');
            }
        };
        let printed = call(
            &self.program,
            &["logs", LOG_TAIL_ARG, name],
            INSPECT_TIMEOUT,
            note,
        )
        .await?;
        let printed: String = printed.chars().take(MAX_LOG_TAIL_BYTES).collect();
        Ok(format!("{printed}{said}").trim().to_owned())
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
