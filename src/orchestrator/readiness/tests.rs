//! Tests of readiness, condition by condition.

use super::*;
use crate::api::{NodeId, nodes::CapabilityReport};

pub(in crate::orchestrator) fn node(slug: &str, concurrency: u32, running_jobs: u32) -> Node {
    let capability: CapabilityReport = serde_json::from_value(serde_json::json!({
        "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": slug},
        "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 2, "ram_mb": 1},
        "sandbox": {"supported": concurrency > 0, "max_concurrency": concurrency.max(1)},
    }))
    .unwrap();
    Node {
        id: NodeId::new(),
        slug: slug.to_owned(),
        capability: capability.into(),
        last_seen_at: Time::from_millis(0),
        draining: false,
        worker_url: Some("http://box:1".to_owned()),
        config: crate::store::StoredConfig::default(),
        config_version: 2,
        ack_version: Some(2),
        ack_status: Some(AckStatus::Applied),
        ack_error: None,
        running_jobs,
        registration: 1,
    }
}

#[test]
fn each_missing_readiness_condition_is_named() {
    let now = Time::from_millis(0);
    let good = node("a", 1, 0);
    let url = Some("http://box:1");
    let reported = LastContact::reported(now);
    let status = |contact: &LastContact, at| node_readiness(&good, url, contact, at).status;
    assert_eq!(status(&reported, now), NodeStatus::Ready);
    let later = now.plus(OFFLINE_AFTER);
    assert_eq!(status(&reported, later), NodeStatus::Ready);
    let too_late = later.plus(Duration::from_millis(1));
    assert_eq!(status(&reported, too_late), NodeStatus::Offline);
    assert_eq!(
        status(&LastContact::reported(later), too_late),
        NodeStatus::Ready
    );
    let unready = LastContact {
        at: later,
        is_unready: true,
    };
    assert_eq!(status(&unready, too_late), NodeStatus::NotReady);
    let cases: [(Node, Option<&str>, &str); 5] = [
        (
            Node {
                draining: true,
                ..good.clone()
            },
            url,
            "draining",
        ),
        (good.clone(), None, "Worker API"),
        (
            Node {
                ack_version: None,
                ack_status: None,
                ..good.clone()
            },
            url,
            "not acknowledged",
        ),
        (
            Node {
                ack_status: Some(AckStatus::Failed),
                ack_error: Some("worker-api: boom".into()),
                ..good.clone()
            },
            url,
            "boom",
        ),
        (node("a", 0, 0), url, "runs no sandboxes"),
    ];
    for (node, url, word) in cases {
        let readiness = node_readiness(&node, url, &reported, now);
        assert_ne!(readiness.status, NodeStatus::Ready);
        assert!(
            readiness.reason.unwrap().for_admins().contains(word),
            "{word}"
        );
    }
}

#[test]
fn node_reasons_are_for_admins() {
    let now = Time::from_millis(0);
    let reason = |node: &Node| {
        let url = node.worker_url.as_deref();
        node_readiness(node, url, &LastContact::reported(now), now)
            .reason
            .unwrap()
    };
    let failed = |error: &str| Node {
        ack_status: Some(AckStatus::Failed),
        ack_error: Some(error.to_owned()),
        ..node("a", 1, 0)
    };
    let known = reason(&failed("image-unavailable: no /home/ann"));
    assert!(
        known
            .for_admins()
            .ends_with("image-unavailable: no /home/ann")
    );
    let public = known.for_users("a");
    assert!(public.contains("image-unavailable; admins") && !public.contains("ann"));
    for unknown in ["hi-ann: no /home/ann", "image-unavailable", ""] {
        let unknown = reason(&failed(unknown)).for_admins();
        assert!(unknown.contains("it gave no reason") && !unknown.contains("ann"));
    }
}

#[test]
fn last_acknowledgement_counts_for_any_version() {
    let now = Time::from_millis(0);
    let status = |version, ack_status| {
        let node = Node {
            config_version: 3,
            ack_version: Some(version),
            ack_status: Some(ack_status),
            ..node("a", 1, 0)
        };
        let url = node.worker_url.as_deref();
        node_readiness(&node, url, &LastContact::reported(now), now).status
    };
    assert_eq!(status(1, AckStatus::Applied), NodeStatus::Ready);
    assert_eq!(status(3, AckStatus::Applied), NodeStatus::Ready);
    assert_eq!(status(2, AckStatus::Failed), NodeStatus::NotReady);
    assert_eq!(status(3, AckStatus::Failed), NodeStatus::NotReady);
}

pub(in crate::orchestrator) fn view(slug: &str, status: &str, more: serde_json::Value) -> NodeView {
    let mut view = serde_json::json!({
        "node_slug": slug, "status": status, "labels": [], "config_version": "1",
        "last_seen_at": "2026-01-01T00:00:00Z", "running_jobs": 0, "max_concurrency": 1,
    });
    view.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    serde_json::from_value(view).unwrap()
}

#[test]
fn failed_readiness_condition_is_explained() {
    let none = serde_json::json!({});
    let because = |reason: &str| serde_json::json!({"reason": reason});
    let inference = |supported: bool, running: Option<bool>| serde_json::json!({"inference": {"supported": supported, "running": running}});
    let ready = |slug: &str, more| view(slug, "ready", more);
    let draining = |slug: &str| view(slug, "draining", because("draining; resume it"));
    let silent = view("c", "offline", because("no contact for 31 s"));
    let words = "could not apply its configuration: image-unavailable";
    let failed = view("d", "not_ready", because(words));
    let off = "runs no inference (--inference off, or none configured)";
    let dead = "its model server does not answer";
    let optional = "; --require-inference false makes that optional";
    let no_inference = |each: &str| format!("no node has inference running; {each}{optional}");
    let join =
        "no node is registered; start one with: cynode node --orchestrator URL --psk-file FILE";
    let cases = [
        (vec![], join.to_owned()),
        (
            vec![draining("a"), draining("b")],
            "all nodes are draining; cynode nodes resume SLUG ends it".to_owned(),
        ),
        (
            vec![draining("a"), silent.clone(), failed.clone()],
            "no node accepts jobs; node a: draining; resume it; node c: no contact for 31 s; \
             node d: could not apply its configuration: image-unavailable"
                .to_owned(),
        ),
        (
            vec![ready("a", none.clone()), silent.clone()],
            no_inference(&format!("node a: {off}")),
        ),
        (
            vec![
                ready("a", inference(false, None)),
                ready("b", inference(true, Some(false))),
                ready("e", inference(true, None)),
                view("f", "draining", inference(true, Some(true))),
            ],
            no_inference(&format!(
                "node a: {off}; node b: {dead}; node e: {dead}; node f: not ready"
            )),
        ),
    ];
    for (nodes, reason) in cases {
        assert_eq!(overall(&nodes, true), Err(reason.clone()));
        let sandboxes = nodes.iter().any(|node| node.status == NodeStatus::Ready);
        let lenient = if sandboxes { Ok(()) } else { Err(reason) };
        assert_eq!(overall(&nodes, false), lenient);
    }
    let refused = serde_json::json!({"inference": {"supported": true, "running": false, "reason": "port-in-use"}});
    let reason = overall(&[ready("a", refused)], true).unwrap_err();
    assert!(
        reason.contains("node a: its model server can't run: port-in-use;"),
        "{reason}"
    );
    let many = vec![silent; 12];
    let reason = overall(&many, false).unwrap_err();
    assert_eq!(reason.matches("node c: ").count(), MAX_NAMED_NODES);
    assert!(reason.ends_with("; and 2 more"), "{reason}");
    let good = [ready("a", none), ready("b", inference(true, Some(true)))];
    assert_eq!(overall(&good, true), Ok(()));
    // Not even with a false report: unsupported features don't run.
    let lies = [ready("a", inference(false, Some(true)))];
    assert!(overall(&lies, true).unwrap_err().contains(off));
}
