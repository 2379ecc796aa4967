//! Reasons of waiting tasks, by what they need.

use super::*;
use crate::{
    orchestrator::{gpu_pool::tests::report, readiness::tests::view},
    store::Requirements,
};
use serde_json::json;

fn node(slug: &str, status: &str, labels: &[&str], devices: usize) -> NodeOutlook {
    let report = report(devices, &[]);
    NodeOutlook {
        view: view(slug, status, json!({"labels": labels, "reason": "says so"})),
        gpus: GpuPool::new(&report),
        report: report.into(),
    }
}

fn reason_of(requirements: Requirements, nodes: &[NodeOutlook]) -> String {
    let task = TaskRequirements {
        placement: Placement::new(requirements),
        ..TaskRequirements::default()
    };
    waiting_reason(&task, nodes).unwrap_or_default()
}

#[test]
fn unmet_requirement_is_named() {
    let mut nodes = vec![
        node("a", "ready", &["fast"], 0),
        node("gpubox", "ready", &["cuda", "eu"], 2),
        node("old", "draining", &["slow"], 0),
    ];
    Arc::make_mut(&mut nodes[0].report).sandbox = None;
    let at = |node: &str| Requirements {
        node: Some(node.to_owned()),
        ..Requirements::default()
    };
    let labels = |labels: &[&str]| Requirements {
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..Requirements::default()
    };
    let features = |features: &[&str]| Requirements {
        features: features.iter().map(|name| (*name).to_owned()).collect(),
        ..Requirements::default()
    };
    let gpus = |gpus| Requirements {
        gpus: Some(gpus),
        ..Requirements::default()
    };
    let two = || gpus(GpuRequest::Count(2));
    let cases = [
        (Requirements::default(), ""),
        (two(), ""),
        (at("nowhere"), "no node named nowhere is registered"),
        (at("old"), "its node accepts no jobs; node old: says so"),
        (labels(&["arm"]), "no node has the label arm"),
        (
            labels(&["slow"]),
            "no node that accepts jobs has the label slow; node old: says so",
        ),
        (
            Requirements {
                labels: labels(&["eu"]).labels,
                ..at("a")
            },
            "node a does not have the label eu",
        ),
        (
            features(&["files", "gpus"]),
            "no suitable node supports files (of a, gpubox, old); upgrade cynode there",
        ),
        (
            gpus(GpuRequest::Count(3)),
            "needs 3 GPUs, which no suitable node has; a has 0, gpubox has 2, old has 0",
        ),
        (
            gpus(GpuRequest::Ids(vec!["7".to_owned()])),
            "needs GPU 7, which no suitable node has; a has 0, gpubox has 2, old has 0",
        ),
    ];
    for (requirements, expected) in cases {
        assert_eq!(reason_of(requirements, &nodes), expected);
    }
    nodes[1].gpus.take(&GpuRequest::Count(1));
    assert_eq!(
        reason_of(two(), &nodes),
        "needs 2 GPUs; gpubox has 1 free of 2"
    );
    assert_eq!(reason_of(gpus(GpuRequest::Count(1)), &nodes), "");
    nodes[0].view.running_jobs = 1;
    nodes[1].view.running_jobs = 1;
    let full = "all slots are in use; it starts when a job ends";
    assert_eq!(reason_of(Requirements::default(), &nodes), full);
}

#[test]
fn node_without_means_is_not_called_old() {
    let mut nodes = vec![node("box", "ready", &[], 0), node("old", "ready", &[], 0)];
    let known = ["limit-shm-size", "limit-memory", "files"].map(str::to_owned);
    let sandbox = Arc::make_mut(&mut nodes[0].report).sandbox.as_mut();
    sandbox.unwrap().features = Some(known.into());
    Arc::make_mut(&mut nodes[1].report).sandbox = None;
    let reason = |names: &[&str], nodes: &[NodeOutlook]| {
        let requirements = Requirements {
            features: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Requirements::default()
        };
        reason_of(requirements, nodes)
    };
    let alone = &nodes[..1];
    let cases = [
        (&["limit-memory"][..], ""),
        (
            &["limit-cpus"],
            "box can't enforce cpus; see cynode doctor there",
        ),
        (
            &["limit-cpus", "limit-memory", "limit-pids"],
            "box can't enforce cpus and pids; see cynode doctor there",
        ),
        (
            &["gpus"],
            "box has no GPU for jobs; see cynode doctor there",
        ),
        (
            &["gpus", "limit-cpus"],
            "box has no GPU for jobs and can't enforce cpus; see cynode doctor there",
        ),
        (
            &["limits"],
            "box can't enforce all limits; see cynode doctor there",
        ),
        (
            &["stdin", "limit-cpus"],
            "no suitable node supports limit-cpus and stdin (of box); upgrade cynode there",
        ),
    ];
    for (features, expected) in cases {
        assert_eq!(reason(features, alone), expected, "{features:?}");
    }
    assert_eq!(
        reason(&["limit-cpus"], &nodes),
        "box can't enforce cpus; see cynode doctor there, or upgrade cynode on old"
    );
}

#[test]
fn long_task_waits_for_node_that_allows_it() {
    let mut nodes = vec![node("a", "ready", &[], 0), node("b", "ready", &[], 0)];
    let long = || Requirements {
        time_limit: Some(12 * 3600),
        ..Requirements::default()
    };
    assert_eq!(reason_of(long(), &nodes), "");
    let sandbox = Arc::make_mut(&mut nodes[1].report)
        .sandbox
        .as_mut()
        .unwrap();
    sandbox.max_timeout_seconds = Some(12 * 3600);
    nodes[1].view.running_jobs = 1;
    let full = "all slots are in use; it starts when a job ends";
    assert_eq!(reason_of(long(), &nodes), full);
    assert_eq!(reason_of(Requirements::default(), &nodes), "");
}

#[test]
fn missing_model_is_named() {
    let mut nodes = vec![node("a", "ready", &[], 0), node("b", "ready", &[], 0)];
    let asks = |model: Option<&str>| Requirements {
        inference: true,
        model: model.map(str::to_owned),
        ..Requirements::default()
    };
    let none = reason_of(asks(None), &nodes);
    assert!(
        none.starts_with("no suitable node serves models; a: runs no inference"),
        "{none}"
    );
    let inference = json!({"supported": true, "running": true, "models": ["m:latest", "n:1"]});
    Arc::make_mut(&mut nodes[1].report).inference = serde_json::from_value(inference).unwrap();
    for model in [None, Some("m"), Some("m:latest"), Some("n:1")] {
        assert_eq!(reason_of(asks(model), &nodes), "");
    }
    assert_eq!(
        reason_of(asks(Some("n")), &nodes),
        "no suitable node has the model n; an admin adds it with: cynode models pull n"
    );
}

#[test]
fn snapshot_binds_job_to_its_node() {
    let image = "localhost/cynode-snapshots/u:dev";
    let mut nodes = vec![node("a", "ready", &["fast"], 0), node("b", "ready", &[], 0)];
    let of = |labels: &[&str]| Requirements {
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        snapshot: Some(image.to_owned()),
        ..Requirements::default()
    };
    assert_eq!(
        reason_of(of(&[]), &nodes),
        "no node has snapshot:dev at present; list what there is with: cynode sandbox snapshots"
    );
    let sandbox = Arc::make_mut(&mut nodes[1].report).sandbox.as_mut();
    sandbox.unwrap().local_images = Some(vec![image.to_owned()]);
    assert_eq!(reason_of(of(&[]), &nodes), "");
    assert_eq!(
        reason_of(of(&["fast"]), &nodes),
        "snapshot:dev is on node b, which is not suitable"
    );
    nodes[1].view.status = NodeStatus::Offline;
    let not_ready = "its snapshot is on node b, which is not ready; node b: says so";
    assert_eq!(reason_of(of(&[]), &nodes), not_ready);
    nodes[0].view.status = NodeStatus::Offline;
    assert_eq!(reason_of(of(&[]), &nodes), not_ready);
}
