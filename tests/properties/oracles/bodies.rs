//! JSON bodies, through the functions that the handlers use, and their checks.

use super::{bounded, image, names, refused};
use cynode::{
    api::{
        JobId, PAYLOAD_VERSION, TaskId,
        auth::{Login, Logout, Refresh},
        check_envelope_version,
        jobs::{MAX_ARGUMENT_BYTES, MAX_COMMAND_BYTES, RunJob, SandboxSpec},
        nodes::{CapabilityReport, ConfigAck, Register},
        problem::Problem,
        secrets::SecretValues,
        tasks::{CreateTask, TaskSpec},
    },
    http::request::parse_json,
};
use serde::{Serialize, de::DeserializeOwned};

/// Any bytes, as the body of each call.
pub fn body(bytes: &[u8]) {
    let outcomes = [
        read::<Login>(bytes).map(drop),
        read::<Refresh>(bytes).map(drop),
        read::<Logout>(bytes).map(drop),
        create(bytes).map(drop),
        run(bytes).map(drop),
        register(bytes).map(drop),
        report(bytes).map(drop),
        acknowledge(bytes).map(drop),
    ];
    for problem in outcomes.into_iter().filter_map(Result::err) {
        bounded(&problem);
    }
}

/// A body is read, and survives a round trip.
fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let body: T = parse_json(bytes)?;
    stable(&body);
    Ok(body)
}

fn payload<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    check_envelope_version(bytes)?;
    parse_json(bytes)
}

fn stable<T: Serialize + DeserializeOwned>(value: &T) {
    let json = serde_json::to_vec(value).expect("it is JSON");
    let again: T = parse_json(&json).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).ok(), Some(json));
}

/// `POST /v1/tasks`: the stored task keeps the limits, can be read again, and is accepted by a worker.
pub fn create(bytes: &[u8]) -> Result<TaskSpec, Problem> {
    let task: CreateTask = read(bytes)?;
    let ways = [
        task.command.is_some(),
        task.script.is_some(),
        task.prompt.is_some(),
    ];
    let spec = task.resolve("alpine").inspect_err(|problem| {
        if ways.iter().filter(|way| **way).count() == 1 {
            refused(problem);
        }
    })?;
    stable(&spec);
    sandbox(&spec.sandbox);
    let name = spec.task_name.as_deref().unwrap_or_default();
    assert!(name.chars().count() <= 200 && !name.contains('\0'));
    assert!(spec.node_labels.len() <= 64 && spec.node_labels.iter().all(|l| names::label(l)));
    assert!((1..=100).contains(&spec.max_attempts));
    assert!((-100..=100).contains(&spec.priority));
    let job = RunJob {
        version: PAYLOAD_VERSION,
        task_id: TaskId::new(),
        job_id: JobId::new(),
        attempt: 1,
        sandbox: spec.sandbox.clone(),
        secrets: secrets(&spec.sandbox),
    };
    let image = job.check().expect("a worker accepts the gateway's task");
    assert_eq!(
        image.as_str(),
        spec.sandbox.image,
        "the normal form is stored"
    );
    Ok(spec)
}

/// A value for each secret that a sandbox names, as an orchestrator sends it.
fn secrets(sandbox: &SandboxSpec) -> SecretValues {
    let values = sandbox.secrets.iter();
    let values = values.map(|secret| (secret.env.clone(), "swordfish".into()));
    let values: serde_json::Map<String, serde_json::Value> = values.collect();
    serde_json::from_value(values.into()).expect("they are texts")
}

/// `POST /v1/worker/jobs:run`.
pub fn run(bytes: &[u8]) -> Result<RunJob, Problem> {
    let job: RunJob = payload(bytes)?;
    stable(&job);
    let image = job.check().inspect_err(refused)?;
    assert_eq!(job.version, 1);
    assert!(job.attempt > 0);
    assert_eq!(job.sandbox.image.parse().ok(), Some(image));
    sandbox(&job.sandbox);
    Ok(job)
}

fn sandbox(spec: &SandboxSpec) {
    image::reference(&spec.image);
    assert!(!spec.command[0].is_empty(), "the command has a program");
    let fits = |text: &String| text.len() <= MAX_ARGUMENT_BYTES && !text.contains('\0');
    assert!(spec.command.iter().all(fits));
    let env = spec.env.clone().unwrap_or_default();
    assert!(
        env.iter()
            .all(|(name, value)| names::env_name(name) && names::env_value(value))
    );
    let arguments: usize = spec.command.iter().map(String::len).sum();
    let variables: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    assert!(arguments + variables <= MAX_COMMAND_BYTES);
    assert!(spec.timeout_seconds != Some(0));
}

/// `POST /v1/nodes/register`.
pub fn register(bytes: &[u8]) -> Result<Register, Problem> {
    let body: Register = payload(bytes)?;
    body.check().inspect_err(refused)?;
    assert!(
        body.node_key
            .as_ref()
            .is_none_or(|key| (16..=256).contains(&key.len()))
    );
    capability(&body.capability);
    Ok(body)
}

/// `POST node_report_url`.
pub fn report(bytes: &[u8]) -> Result<CapabilityReport, Problem> {
    let report: CapabilityReport = payload(bytes)?;
    report.check("").inspect_err(refused)?;
    capability(&report);
    Ok(report)
}

fn capability(report: &CapabilityReport) {
    assert_eq!(report.version, 1);
    assert!(names::slug(&report.node.node_slug));
    let labels = report.node.labels.as_deref().unwrap_or_default();
    assert!(labels.len() <= 64 && labels.iter().all(|label| names::label(label)));
    if let Some(url) = report.worker_url() {
        names::url(url);
    }
    assert!(
        report
            .sandbox
            .as_ref()
            .is_none_or(|s| s.max_concurrency != Some(0))
    );
    // Every byte of a text may need six in JSON.
    let size = serde_json::to_vec(report).expect("a report is JSON").len();
    assert!(size < 2 * 1024 * 1024, "{size} bytes to store");
    let mut plain = report.clone();
    // A float there may change in its last digit.
    let devices = plain
        .gpu
        .iter_mut()
        .flat_map(|gpu| gpu.devices.iter_mut().flatten());
    devices.for_each(|device| device.features = None);
    stable(&plain);
}

/// `POST node_config_url`.
pub fn acknowledge(bytes: &[u8]) -> Result<ConfigAck, Problem> {
    let mut ack: ConfigAck = payload(bytes)?;
    ack.check().inspect_err(refused)?;
    assert_eq!(ack.version, 1);
    if let Some(error) = &mut ack.error {
        assert!(error.kind.len() <= 256 && error.message.len() <= 4096);
        // A float there may change in its last digit, and it isn't stored.
        error.details = None;
    }
    assert!(
        ack.effective_config_hash
            .as_ref()
            .is_none_or(|hash| hash.len() <= 256)
    );
    stable(&ack);
    Ok(ack)
}
