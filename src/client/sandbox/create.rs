//! Creation of a sandbox, and the wait until it runs.

use super::{leaving::Leaving, manage::whole_seconds, target::Target};
use crate::{
    api::{
        jobs::Env,
        sandboxes::{CreateSandbox, Sandbox, SandboxStatus},
    },
    cli::{EgressFlags, OutputFormat, ResourceFlags, SandboxCreateArgs, SecretFlags},
    client::{
        api_client::ApiClient,
        print::{self, clean, note},
        task::env_of_flags,
    },
    exit::{Exit, Failure},
};
use http::Method;
use std::{thread, time::Duration};

/// Pause between two looks at a sandbox that does not run yet.
const INTERVAL: Duration = Duration::from_secs(1);
/// Seconds that the call which creates a sandbox waits for it to run: most run by then, and of others the id is known soon.
const FIRST_WAIT_SECONDS: u64 = 2;
/// Time that the orchestrator takes to answer at most, beyond the wait that was asked for.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Exit code for a sandbox that ended before it ran.
const EXIT_NOT_RUN: u8 = 125;

/// Wishes for a new sandbox.
#[derive(Default)]
pub(super) struct NewSandbox {
    pub(super) name: Option<String>,
    pub(super) image: Option<String>,
    pub(super) env: Option<Env>,
    pub(super) secrets: SecretFlags,
    pub(super) node: Option<String>,
    pub(super) labels: Vec<String>,
    pub(super) limits: ResourceFlags,
    pub(super) egress: EgressFlags,
    pub(super) lifetime: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    /// Whether the answer comes at once, before the sandbox runs.
    pub(super) is_immediate: bool,
}

impl NewSandbox {
    /// Body of the call.
    fn body(&self) -> CreateSandbox {
        let limits = &self.limits;
        let (network_policy, egress) = self.egress.clone().into_fields(&self.secrets);
        CreateSandbox {
            name: self.name.clone(),
            image: self.image.clone(),
            env: self.env.clone(),
            secrets: self.secrets.inputs(),
            mask: self.secrets.mask(),
            node: self.node.clone(),
            node_labels: (!self.labels.is_empty()).then(|| self.labels.clone()),
            cpus: limits.cpus,
            memory: limits.memory,
            pids: limits.pids,
            shm_size: limits.shm_size,
            gpus: limits.gpus.clone(),
            use_inference: limits.use_inference.then_some(true),
            network_policy,
            egress,
            lifetime_seconds: self.lifetime.map(whole_seconds),
            idle_timeout_seconds: self.idle_timeout.map(whole_seconds),
            wait_seconds: Some(if self.is_immediate {
                0
            } else {
                FIRST_WAIT_SECONDS
            }),
        }
    }

    /// Creates it. It may not run yet.
    pub(super) fn create(&self, api: &mut ApiClient) -> Result<Sandbox, Failure> {
        let patient = Duration::from_secs(FIRST_WAIT_SECONDS) + ANSWER_TIME;
        let mut api = api.with_patience(patient);
        api.call(Method::POST, "/v1/sandboxes", Some(&self.body()))
    }
}

/// `cynode sandbox create`. A signal ends the wait, and not the sandbox.
pub(super) fn create(args: SandboxCreateArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let new = NewSandbox {
        name: args.name,
        image: args.image,
        env: env_of_flags(args.env)?,
        secrets: args.secrets,
        node: args.node,
        labels: args.label,
        limits: args.limits,
        egress: args.egress,
        lifetime: args.lifetime,
        idle_timeout: args.idle_timeout,
        is_immediate: args.no_wait,
    };
    let leaving = (!args.no_wait).then(Leaving::listen).transpose()?;
    if let Some(leaving) = &leaving {
        leaving.explain(may_be_created(new.name.as_deref()));
    }
    let mut sandbox = new.create(&mut api)?;
    let id = sandbox.id.to_string();
    if let Some(leaving) = &leaving {
        leaving.explain(goes_on(new.name.as_deref().unwrap_or(&id)));
        let waited = wait_until_running(&mut api, sandbox);
        sandbox = waited.map_err(|failure| with_id(failure, &id))?;
    }
    match args.client.output {
        OutputFormat::Json => print::json(&sandbox),
        OutputFormat::Text => print::line(&id),
    }
}

/// Note for a signal while the call that creates a sandbox has no answer yet.
fn may_be_created(name: Option<&str>) -> String {
    match name {
        Some(name) => format!(
            "the sandbox goes on, if it is created already: cynode sandbox rm {} deletes it",
            Target::sandbox(name).word()
        ),
        None => "the sandbox goes on, if it is created already: see cynode sandbox list".to_owned(),
    }
}

/// Note for a signal while a sandbox does not run yet.
fn goes_on(name: &str) -> String {
    format!(
        "the sandbox goes on: cynode sandbox rm {} deletes it",
        Target::sandbox(name).word()
    )
}

/// Failure of the wait for a sandbox, which may be there.
fn with_id(failure: Failure, id: &str) -> Failure {
    match failure.exit {
        Exit::Unreachable => {
            let text = format!(
                "{}\nThe sandbox is created; see it with: cynode sandbox show {id}",
                failure.message
            );
            Failure::new(failure.exit, text)
        }
        _ => failure,
    }
}

/// Waits until a sandbox runs. Says what it waits for, where that takes long; fails where it has ended.
pub(super) fn wait_until_running(
    api: &mut ApiClient,
    mut sandbox: Sandbox,
) -> Result<Sandbox, Failure> {
    let path = Target::sandbox(&sandbox.id.to_string()).path("");
    let mut noted = None;
    loop {
        match sandbox.status {
            SandboxStatus::Running => return Ok(sandbox),
            SandboxStatus::Ended => return Err(ended(&sandbox)),
            SandboxStatus::Queued | SandboxStatus::Starting => {}
        }
        let detail = sandbox.detail.as_deref();
        let reason = detail.unwrap_or("a node with a free slot").to_owned();
        if noted.as_ref() != Some(&reason) {
            note(&format!("waiting: {}", clean(&reason)));
            noted = Some(reason);
        }
        thread::sleep(INTERVAL);
        sandbox = api.get_patiently(&path)?;
    }
}

/// Failure of a sandbox that has ended.
pub(super) fn ended(sandbox: &Sandbox) -> Failure {
    let reason = sandbox.reason.map_or("ended", |reason| reason.as_str());
    let detail = sandbox
        .detail
        .as_deref()
        .map_or_else(String::new, |detail| format!(": {}", clean(detail)));
    let text = format!("the sandbox has ended ({reason}){detail}");
    Failure::new(Exit::Code(EXIT_NOT_RUN), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn body_has_only_what_is_given() {
        let body = |new: &NewSandbox| serde_json::to_value(new.body()).unwrap();
        let usual = json!({"wait_seconds": FIRST_WAIT_SECONDS});
        assert_eq!(body(&NewSandbox::default()), usual);
        let new = NewSandbox {
            name: Some("a".to_owned()),
            lifetime: Some(Duration::from_millis(1500)),
            is_immediate: true,
            ..NewSandbox::default()
        };
        let expected = json!({"name": "a", "lifetime_seconds": 2, "wait_seconds": 0});
        assert_eq!(body(&new), expected);
    }
}
