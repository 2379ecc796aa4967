//! Why we are, or are not, ready. Pure: takes nodes and a time, answers in words.

use super::liveness::Heard;
use crate::{
    api::{
        nodes::{AckStatus, Inference, NodeStatus, NodeView},
        time::Time,
    },
    orchestrator::summary,
    store::{Demands, Node, Prospects},
};
use std::time::Duration;

/// A node that was not heard for so long is offline.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// How the reason of a node whose acknowledgement is `failed` begins; the node's own words follow.
const FAILED: &str = "could not apply its configuration: ";
/// How the reason of a node that runs no sandboxes begins; the node's own words follow.
const UNSUPPORTED: &str = "runs no sandboxes at present: ";
/// How the reason of a node begins whose Worker API answers that it is not ready; its own words follow.
const UNREADY: &str = "its Worker API is not ready: ";
/// Said of a node that is ready, and for which there is a newer configuration.
pub(super) const STALE: &str = "runs with an older configuration; its next start takes the new one";
/// So many nodes are named one by one.
const NAMED: usize = 10;

/// Where a node stands: whether it may be given jobs, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) status: NodeStatus,
    pub(super) reason: Option<String>,
}

impl Standing {
    /// It counts as ready, and doesn't take jobs.
    pub(super) fn refuses(why: &str) -> Self {
        Self {
            status: NodeStatus::NotReady,
            reason: Some(why.to_owned()),
        }
    }
}

/// Where `node` stands at `now`, reached at `url` and last heard as `heard` says.
pub(super) fn standing(node: &Node, url: Option<&str>, heard: &Heard, now: Time) -> Standing {
    let is = |status, reason: String| Standing {
        status,
        reason: Some(reason),
    };
    if let Some(stopped) = stopped(node, now) {
        let jobs = match node.running_jobs {
            0 => String::new(),
            1 => ", 1 job goes on".to_owned(),
            jobs => format!(", {jobs} jobs go on"),
        };
        return is(NodeStatus::Offline, format!("{stopped}{jobs}"));
    }
    let silent = now.since(heard.at);
    if silent > HEARD_WITHIN {
        return is(
            NodeStatus::Offline,
            format!("not heard for {} s", silent.as_secs()),
        );
    }
    if node.draining {
        return is(
            NodeStatus::Draining,
            format!("draining; cynode nodes resume {} ends it", node.slug),
        );
    }
    if url.is_none() {
        return is(
            NodeStatus::NotReady,
            "has not said where its Worker API is".to_owned(),
        );
    }
    // Whichever version it was: it goes on with the last that it applied. Those of another token are gone.
    match node.ack_status {
        Some(AckStatus::Applied) => {}
        Some(AckStatus::Failed) => {
            let cause = node.ack_error.as_deref().unwrap_or("it did not say why");
            return is(NodeStatus::NotReady, format!("{FAILED}{cause}"));
        }
        None => {
            return is(
                NodeStatus::NotReady,
                "has not acknowledged its configuration yet; restart it if it stays so".to_owned(),
            );
        }
    }
    if node.capability.is_full_of_others() {
        return is(
            NodeStatus::NotReady,
            "all its slots are taken by jobs of another orchestrator; it takes jobs when one ends"
                .to_owned(),
        );
    }
    if node.capability.max_concurrency() == 0 {
        let sandbox = node.capability.sandbox.as_ref();
        let cause = sandbox.and_then(|sandbox| sandbox.reason.as_deref());
        let cause = cause.unwrap_or("it did not say why; run cynode doctor there");
        return is(NodeStatus::NotReady, format!("{UNSUPPORTED}{cause}"));
    }
    if let Some(words) = &heard.not_ready {
        return is(NodeStatus::NotReady, format!("{UNREADY}{words}"));
    }
    Standing {
        status: NodeStatus::Ready,
        reason: None,
    }
}

/// Since when a node is stopped that said so before it left, in words; `None` while it serves.
pub(super) fn stopped(node: &Node, now: Time) -> Option<String> {
    let since = node.capability.node.stopping_since?;
    Some(format!("stopped at {}", since.to_the_minute(now)))
}

/// Whether the whole can do work, or the condition that fails.
pub(super) fn overall(nodes: &[NodeView], require_inference: bool) -> Result<(), String> {
    if nodes.is_empty() {
        return Err(
            "no node is registered; start one with: cynode node --orchestrator URL --psk-file FILE"
                .to_owned(),
        );
    }
    if nodes.iter().all(|node| node.status == NodeStatus::Draining) {
        return Err("all nodes are draining; cynode nodes resume SLUG ends it".to_owned());
    }
    let ready: Vec<&NodeView> = nodes
        .iter()
        .filter(|node| node.status == NodeStatus::Ready)
        .collect();
    if ready.is_empty() {
        let each = each(nodes, brief);
        return Err(format!("no node takes jobs; {each}"));
    }
    let why_not = |node: &NodeView| why_no_inference(node.inference.as_ref());
    let infers = |node: &&NodeView| why_not(node).is_none();
    if require_inference && !ready.iter().any(infers) {
        let why = |node| why_not(node).unwrap_or_default().to_owned();
        let each = each(ready, why);
        return Err(format!(
            "no node has inference running; {each}; --require-inference false makes that optional"
        ));
    }
    Ok(())
}

/// What is to be said of each node.
fn each<'a>(
    nodes: impl IntoIterator<Item = &'a NodeView>,
    say: impl Fn(&'a NodeView) -> String,
) -> String {
    let mut nodes = nodes.into_iter();
    let named = nodes.by_ref().take(NAMED);
    let mut said: Vec<String> = named
        .map(|node| format!("node {}: {}", node.node_slug, say(node)))
        .collect();
    let more = nodes.count();
    if more > 0 {
        said.push(format!("and {more} more"));
    }
    said.join("; ")
}

/// Why a node isn't ready, for whoever asks: of its own words only the kind, since its paths, images
/// and logs are nobody's business.
fn brief(node: &NodeView) -> String {
    let reason = node.reason.as_deref().unwrap_or("not ready");
    let slug = &node.node_slug;
    if reason.starts_with(UNSUPPORTED) {
        return format!("{UNSUPPORTED}cynode nodes show {slug} says why");
    }
    if reason.starts_with(UNREADY) {
        return format!("its Worker API is not ready, more with cynode nodes show {slug}");
    }
    let Some(cause) = reason.strip_prefix(FAILED) else {
        return reason.to_owned();
    };
    let kind = cause.split(':').next().unwrap_or_default();
    let kind: String = kind
        .chars()
        .filter(|c| c.is_ascii_lowercase() || *c == '-')
        .take(40)
        .collect();
    format!("{FAILED}{kind}, more with cynode nodes show {slug}")
}

/// Why a node that reports this has no inference running; `None` when it has.
pub(super) fn why_no_inference(inference: Option<&Inference>) -> Option<&'static str> {
    match inference {
        Some(inference) if inference.supported => {
            (inference.running != Some(true)).then_some("its model server does not answer")
        }
        _ => Some("runs no inference (--inference off, or none configured)"),
    }
}

/// Why a task that runs at this node comes to no end.
pub(super) fn silent(node: &Node, prospects: Prospects, now: Time) -> String {
    let outlook = match prospects {
        Prospects {
            is_canceled: true, ..
        } => "is canceled as soon as it is back, and within half a minute in any case",
        Prospects { may_move: true, .. } => {
            "goes on as soon as it is back, or, after a lease, at another node that fits"
        }
        _ => "goes on as soon as it is back; this was the last attempt that it may have",
    };
    let state = stopped(node, now).unwrap_or_else(|| "does not answer".to_owned());
    format!("node {} {state}; the task {outlook}", node.slug)
}

/// Why a task with these demands can't start now; `None` when a node could take it.
pub(super) fn waits_for(demands: &Demands, nodes: &[NodeView]) -> Option<String> {
    let why = no_free_node(demands, nodes)?;
    let refusals = summary::refusals(&demands.refusals);
    Some(if refusals.is_empty() {
        why
    } else {
        format!("{why}; it was refused by {refusals}")
    })
}

fn no_free_node(demands: &Demands, nodes: &[NodeView]) -> Option<String> {
    if let Err(reason) = overall(nodes, false) {
        return Some(reason);
    }
    let Demands { labels, refusals } = demands;
    let has_refused = |node: &NodeView| {
        let mut refusals = refusals.values();
        refusals.any(|refusal| refusal.node == node.node_slug)
    };
    let fitting: Vec<&NodeView> = nodes
        .iter()
        .filter(|node| labels.iter().all(|label| node.labels.contains(label)))
        .filter(|node| !has_refused(node))
        .collect();
    let mut ready = fitting
        .iter()
        .filter(|node| node.status == NodeStatus::Ready)
        .peekable();
    if ready.peek().is_none() {
        let labels = labels.join(" and ");
        return Some(match fitting[..] {
            [] if !refusals.is_empty() => "no other node fits".to_owned(),
            _ if !refusals.is_empty() => {
                let each = each(fitting, brief);
                format!("no other node that fits takes jobs; {each}")
            }
            [] => format!("no node has the label {labels}"),
            _ => format!(
                "no node that takes jobs has the label {labels}; {}",
                each(fitting, brief)
            ),
        });
    }
    if ready.all(|node| node.running_jobs >= node.max_concurrency) {
        return Some("all slots are taken; it starts when a job ends".to_owned());
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
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
            config: None,
            config_version: 2,
            ack_version: Some(2),
            ack_status: Some(AckStatus::Applied),
            ack_error: None,
            running_jobs,
        }
    }

    #[test]
    fn each_missing_condition_is_named() {
        let now = Time::from_millis(0);
        let good = node("a", 1, 0);
        let url = Some("http://box:1");
        let reported = Heard::reported(now);
        let status = |heard: &Heard, at| standing(&good, url, heard, at).status;
        assert_eq!(status(&reported, now), NodeStatus::Ready);
        let later = now.plus(HEARD_WITHIN);
        assert_eq!(status(&reported, later), NodeStatus::Ready);
        let too_late = later.plus(Duration::from_millis(1));
        assert_eq!(status(&reported, too_late), NodeStatus::Offline);
        assert_eq!(status(&Heard::reported(later), too_late), NodeStatus::Ready);
        let unready = Heard {
            at: later,
            not_ready: Some("no podman".to_owned()),
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
                    ack_error: Some("boom".into()),
                    ..good.clone()
                },
                url,
                "boom",
            ),
            (node("a", 0, 0), url, "runs no sandboxes"),
        ];
        for (node, url, word) in cases {
            let standing = standing(&node, url, &reported, now);
            assert_ne!(standing.status, NodeStatus::Ready);
            assert!(standing.reason.unwrap().contains(word), "{word}");
        }
    }

    #[test]
    fn the_last_acknowledgement_counts_whichever_version() {
        let now = Time::from_millis(0);
        let status = |version, ack_status| {
            let node = Node {
                config_version: 3,
                ack_version: Some(version),
                ack_status: Some(ack_status),
                ..node("a", 1, 0)
            };
            let url = node.worker_url.as_deref();
            standing(&node, url, &Heard::reported(now), now).status
        };
        assert_eq!(status(1, AckStatus::Applied), NodeStatus::Ready);
        assert_eq!(status(3, AckStatus::Applied), NodeStatus::Ready);
        assert_eq!(status(2, AckStatus::Failed), NodeStatus::NotReady);
        assert_eq!(status(3, AckStatus::Failed), NodeStatus::NotReady);
    }

    fn view(slug: &str, status: &str, more: serde_json::Value) -> NodeView {
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
    fn the_condition_that_fails_is_told_in_words() {
        let none = serde_json::json!({});
        let because = |reason: &str| serde_json::json!({"reason": reason});
        let inference = |supported: bool, running: Option<bool>| serde_json::json!({"inference": {"supported": supported, "running": running}});
        let ready = |slug: &str, more| view(slug, "ready", more);
        let draining = |slug: &str| view(slug, "draining", because("draining; resume it"));
        let silent = view("c", "offline", because("not heard for 31 s"));
        let words = "could not apply its configuration: image-unavailable: /home/ann: no disk";
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
                "no node takes jobs; node a: draining; resume it; node c: not heard for 31 s; \
                 node d: could not apply its configuration: image-unavailable, more with cynode nodes show d"
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
                no_inference(&format!("node a: {off}; node b: {dead}; node e: {dead}")),
            ),
        ];
        for (nodes, reason) in cases {
            assert_eq!(overall(&nodes, true), Err(reason.clone()));
            let sandboxes = nodes.iter().any(|node| node.status == NodeStatus::Ready);
            let lenient = if sandboxes { Ok(()) } else { Err(reason) };
            assert_eq!(overall(&nodes, false), lenient);
        }
        let many = vec![silent; 12];
        let told = overall(&many, false).unwrap_err();
        assert_eq!(told.matches("node c: ").count(), NAMED);
        assert!(told.ends_with("; and 2 more"), "{told}");
        let good = [ready("a", none), ready("b", inference(true, Some(true)))];
        assert_eq!(overall(&good, true), Ok(()));
        // Not even one that lies: what is not supported does not run.
        let lies = [ready("a", inference(false, Some(true)))];
        assert!(overall(&lies, true).unwrap_err().contains(off));
    }
}
