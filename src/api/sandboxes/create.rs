//! Creation of a sandbox that stays: validation of the request, and its conversion to the spec of its task.

use super::{
    DEFAULT_IDLE_TIMEOUT_SECONDS, DEFAULT_LIFETIME_SECONDS, DEFAULT_WAIT_SECONDS,
    MAX_LIFETIME_SECONDS, MAX_WAIT_SECONDS, SessionSpec,
};
use crate::api::{
    egress::{self, Egress},
    image,
    integer::{check_range, optional_integer},
    jobs::{
        self, Env, NetworkPolicy, SandboxSpec,
        resources::{Cpus, GpuRequest, MAX_PIDS, MIN_PIDS},
    },
    nodes::{LABEL_PATTERN, MAX_LABELS, SLUG_PATTERN, check_slug},
    problem::Problem,
    requirements::{check_node, pids, resolve_image, text_schema},
    secrets::{self, MAX_JOB_SECRETS, SecretInput},
    size::ByteSize,
    tasks::TaskSpec,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Body of `POST /v1/sandboxes`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("allOf" = [egress::policy_schema()]))]
pub struct CreateSandbox {
    /// Name of the sandbox: lower-case letters, digits and `-`. No other sandbox of the user that has not ended may have
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = SLUG_PATTERN))]
    pub name: Option<String>,
    /// Image of the sandbox; the orchestrator's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = image::MAX_INPUT_BYTES), regex(pattern = image::PATTERN))]
    pub image: Option<String>,
    /// Variables added to the environment of the image, for every command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("propertyNames" = {"pattern": jobs::ENV_NAME_PATTERN}, "additionalProperties" = text_schema(0)))]
    pub env: Option<Env>,
    /// Secrets whose values become variables of every command, by their names; or as objects with a `name` and the
    /// variable, `env`. With a `host`, the variable has a placeholder, which the proxy replaces in the `header` of requests to
    /// that host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_JOB_SECRETS))]
    pub secrets: Option<Vec<SecretInput>>,
    /// Whether values of secrets are replaced by `***` in the output of commands; true by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<bool>,
    /// Labels that the node must have, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_LABELS), inner(regex(pattern = LABEL_PATTERN)))]
    pub node_labels: Option<Vec<String>>,
    /// Slug of the only node that may run the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = SLUG_PATTERN))]
    pub node: Option<String>,
    /// Share of the node's processors; unlimited by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Limit of memory, swap included; unlimited by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Limit of processes and threads; podman's by default.
    #[serde(
        default,
        deserialize_with = "pids",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = MIN_PIDS, max = MAX_PIDS))]
    pub pids: Option<u32>,
    /// Size of `/dev/shm`; podman's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// Graphics processors, which no other job has meanwhile; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpuRequest>,
    /// Network of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Hosts that the sandbox may reach; with network policy `allowlist`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Whether the sandbox may use a model server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_inference: Option<bool>,
    /// Time after which the sandbox ends, in seconds from its start, unless it is renewed; an hour by default.
    #[serde(
        default,
        deserialize_with = "lifetime",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = MAX_LIFETIME_SECONDS))]
    pub lifetime_seconds: Option<u64>,
    /// Time without a running command and without a call after which the sandbox ends, in seconds; 15 minutes by
    /// default.
    #[serde(
        default,
        deserialize_with = "lifetime",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = MAX_LIFETIME_SECONDS))]
    pub idle_timeout_seconds: Option<u64>,
    /// Time that the answer waits for the sandbox to run, in seconds; 30 by default. The sandbox is created in any case.
    #[serde(
        default,
        deserialize_with = "wait",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(max = MAX_WAIT_SECONDS))]
    pub wait_seconds: Option<u64>,
}

fn lifetime<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    optional_integer(deserializer, 1..=MAX_LIFETIME_SECONDS)
}

fn wait<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    optional_integer(deserializer, 0..=MAX_WAIT_SECONDS)
}

impl CreateSandbox {
    /// Time that the answer waits for the sandbox to run, in seconds.
    pub fn wait_seconds(&self) -> u64 {
        let wait = self.wait_seconds.unwrap_or(DEFAULT_WAIT_SECONDS);
        wait.min(MAX_WAIT_SECONDS)
    }

    /// Checks every field, and converts the request into the spec of a task without a command. It has one attempt: what
    /// is in a sandbox can't begin again elsewhere.
    pub fn resolve(self, default_image: &str) -> Result<TaskSpec, Problem> {
        if let Some(name) = &self.name {
            check_slug("/name", name)?;
        }
        jobs::check_env("/env", self.env.as_ref())?;
        let node_labels = self.node_labels.unwrap_or_default();
        check_node(&node_labels, self.node.as_deref())?;
        check_range(
            "/wait_seconds",
            self.wait_seconds.unwrap_or_default(),
            0..=MAX_WAIT_SECONDS,
        )?;
        let session = SessionSpec {
            lifetime_seconds: self.lifetime_seconds.unwrap_or(DEFAULT_LIFETIME_SECONDS),
            idle_timeout_seconds: self
                .idle_timeout_seconds
                .unwrap_or(DEFAULT_IDLE_TIMEOUT_SECONDS),
        };
        session.check("")?;
        let secrets = secrets::resolve("/secrets", self.secrets, self.env.as_ref())?;
        let egress = Egress::resolve(self.egress.as_ref(), self.network_policy)?;
        secrets::check_hosts("/secrets", &secrets, egress.as_ref())?;
        let sandbox = SandboxSpec {
            image: resolve_image(self.image.as_deref(), default_image)?,
            env: self.env,
            network_policy: self.network_policy,
            egress,
            use_inference: self.use_inference.filter(|is_wanted| *is_wanted),
            cpus: self.cpus,
            memory: self.memory,
            pids: self.pids,
            shm_size: self.shm_size,
            gpus: self.gpus,
            session: Some(session),
            secrets,
            mask: self.mask,
            ..SandboxSpec::default()
        };
        sandbox.check_extras("")?;
        Ok(TaskSpec {
            prompt: None,
            task_name: None,
            sandbox,
            node_labels,
            node: self.node,
            max_attempts: 1,
            priority: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolve(body: Value) -> Result<TaskSpec, Problem> {
        let create: CreateSandbox = serde_json::from_value(body).unwrap();
        create.resolve("alpine")
    }

    #[test]
    fn empty_request_has_defaults() {
        let spec = resolve(json!({})).unwrap();
        let session = spec.sandbox.session.unwrap();
        assert_eq!(
            (session.lifetime_seconds, session.idle_timeout_seconds),
            (3600, 900)
        );
        assert_eq!(spec.sandbox.image, "docker.io/library/alpine:latest");
        assert_eq!((spec.max_attempts, spec.sandbox.command.len()), (1, 0));
        assert_eq!(spec.sandbox.timeout_seconds, None);
    }

    #[test]
    fn invalid_field_of_sandbox_is_named() {
        for (field, value) in [
            ("name", json!("My Box")),
            ("name", json!("")),
            ("name", json!("x".repeat(64))),
            ("env", json!({"CYNODE_TASK_ID": "x"})),
            ("node_labels", json!(["a b"])),
            ("node", json!("A")),
            ("memory", json!(1)),
            ("image", json!("A b")),
            ("egress", json!({"allow": ["a.b"]})),
        ] {
            let problem = resolve(json!({field: value})).unwrap_err();
            let pointer = &problem.errors[0].pointer;
            assert!(pointer.starts_with(&format!("#/{field}")), "{pointer}");
        }
        for body in [
            json!({"lifetime_seconds": 0}),
            json!({"lifetime_seconds": 86_401}),
            json!({"idle_timeout_seconds": 0.5}),
            json!({"wait_seconds": 61}),
            json!({"wait_seconds": -1}),
            json!({"pids": 0}),
        ] {
            let parsed = serde_json::from_value::<CreateSandbox>(body.clone());
            assert!(parsed.is_err(), "{body}");
        }
    }
}
