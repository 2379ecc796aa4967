//! Nodes whose report is late: are they alive?
//!
//! Our own nodes report every 10 s. Other implementations do so every minute, or only on change; they count
//! as heard while their Worker API answers `GET /readyz`:
//!
//! | answer | the node |
//! |---|---|
//! | 200 | is heard, and takes jobs |
//! | 503, and 200 to `GET /healthz` | is heard, and takes no jobs until a later answer or a report says otherwise |
//! | anything else, or none | is not heard by that |
//!
//! Answers are kept in memory only: after a restart every late node is asked at once, and a node that
//! reports on time costs no write and no call. `/readyz` needs no token, so on a network that anybody can join,
//! whoever takes over the address of a node can keep it from being offline.

use super::{Orchestrator, readiness::HEARD_WITHIN};
use crate::{
    api::{NodeId, time::Time},
    errors,
    http::server::{Shutdown, ended},
    store::{Node, StoreError},
};
use futures_util::{StreamExt as _, stream};
use http::{Method, StatusCode};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A node that has not reported for this long is asked.
const REPORT_LATE_AFTER: Duration = Duration::from_secs(15);
/// Between two questions to a node that is heard.
const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// Between two questions to a node that is offline; when it is back, most say so by themselves.
const OFFLINE_ASK_INTERVAL: Duration = Duration::from_mins(1);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks for nodes that are late.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Nodes that are asked at the same time.
const CONCURRENCY_LIMIT: usize = 128;

/// What late nodes have answered.
#[derive(Default)]
pub(super) struct Liveness(Mutex<HashMap<NodeId, Asked>>);

struct Asked {
    last: Instant,
    /// The last answer that shows the node to be alive.
    answered: Option<(Time, Answer)>,
}

/// An answer of a node that is alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Ready,
    NotReady,
}

/// When a node was last heard, by whichever way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Heard {
    pub(super) at: Time,
    /// Whether the node said, when it was asked, that it takes no jobs.
    pub(super) is_unready: bool,
}

impl Heard {
    /// By its reports alone.
    pub(super) const fn reported(at: Time) -> Self {
        Self {
            at,
            is_unready: false,
        }
    }
}

impl Liveness {
    fn map(&self) -> MutexGuard<'_, HashMap<NodeId, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When this node was last heard: its last report, or a later answer.
    pub(super) fn heard(&self, node: &Node) -> Heard {
        match self
            .map()
            .get(&node.id)
            .and_then(|asked| asked.answered.as_ref())
        {
            Some((at, answer)) if *at > node.last_seen_at => Heard {
                at: *at,
                is_unready: *answer == Answer::NotReady,
            },
            _ => Heard::reported(node.last_seen_at),
        }
    }

    /// Whether this late node is to be asked now; it counts as asked then.
    fn take_turn(&self, node: &Node, now: Time) -> bool {
        let silent = now.since(self.heard(node).at);
        let mut map = self.map();
        let asked = map.get(&node.id);
        if !is_due(silent, asked.map(|asked| asked.last.elapsed())) {
            return false;
        }
        let last = Instant::now();
        let entry = map.entry(node.id).or_insert(Asked {
            last,
            answered: None,
        });
        entry.last = last;
        true
    }

    fn note(&self, node: NodeId, answer: Answer) {
        if let Some(asked) = self.map().get_mut(&node) {
            asked.answered = Some((Time::now(), answer));
        }
    }

    /// Forgets those that report again, or are gone.
    fn keep_only(&self, late: &[Node]) {
        let late: HashSet<NodeId> = late.iter().map(|node| node.id).collect();
        self.map().retain(|id, _| late.contains(id));
    }
}

/// Whether a late node, not heard by any way for `silent`, is asked again `asked_ago` after the last time.
fn is_due(silent: Duration, asked_ago: Option<Duration>) -> bool {
    let pause = if silent > HEARD_WITHIN {
        OFFLINE_ASK_INTERVAL
    } else {
        ASK_INTERVAL
    };
    asked_ago.is_none_or(|ago| ago >= pause)
}

/// Whether a node is alive, and takes jobs, by the status of its `/readyz` and whether its `/healthz` is
/// 200: a proxy in between answers 503 to both, for a node that is gone.
const fn read(ready: StatusCode, is_healthy: bool) -> Option<Answer> {
    match ready {
        StatusCode::OK => Some(Answer::Ready),
        StatusCode::SERVICE_UNAVAILABLE if is_healthy => Some(Answer::NotReady),
        _ => None,
    }
}

/// Runs until `shutdown`.
pub(super) async fn run(orchestrator: Arc<Orchestrator>, shutdown: Shutdown) {
    tokio::select! {
        () = watch(&orchestrator) => {}
        () = ended(shutdown) => {}
    }
}

async fn watch(orchestrator: &Orchestrator) {
    loop {
        if let Err(error) = pass(orchestrator).await {
            let error = errors::chain(&error);
            tracing::warn!(error, "cannot read which nodes are late with a report");
            tokio::time::sleep(ASK_INTERVAL).await;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Asks all late nodes whose turn it is, those that were heard last first.
async fn pass(orchestrator: &Orchestrator) -> Result<(), StoreError> {
    let now = Time::now();
    let late = orchestrator.store.node_late(now.minus(REPORT_LATE_AFTER));
    let late = late.await?;
    orchestrator.liveness.keep_only(&late);
    let due = late
        .iter()
        .filter(|node| orchestrator.liveness.take_turn(node, now));
    stream::iter(due)
        .for_each_concurrent(CONCURRENCY_LIMIT, |node| ask(orchestrator, node))
        .await;
    Ok(())
}

async fn ask(orchestrator: &Orchestrator, node: &Node) {
    let (Some(url), Some(client)) = (
        orchestrator.worker_url(node),
        orchestrator.node_client(node),
    ) else {
        return;
    };
    let url = format!("{}/readyz", url.trim_end_matches('/'));
    let call = orchestrator.client_for(node).call(Method::GET, url);
    let ready = match call.look(ANSWER_TIMEOUT).await {
        Ok(look) => look.status,
        Err(error) => {
            tracing::debug!(node = node.slug, %error, "late node does not answer");
            return;
        }
    };
    let is_healthy = ready == StatusCode::OK || client.is_there().await;
    let Some(answer) = read(ready, is_healthy) else {
        return;
    };
    let before = orchestrator.liveness.heard(node);
    let silent = Time::now().since(before.at);
    let is_news = silent > HEARD_WITHIN || before.is_unready;
    orchestrator.liveness.note(node.id, answer);
    orchestrator.leftovers.heard(node.id, silent);
    if is_news {
        orchestrator.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::readiness::tests::node;

    #[test]
    fn late_nodes_are_asked_at_their_pace() {
        let [soon, long] = [29, 31].map(Duration::from_secs);
        for (silent, asked_ago, due) in [
            (soon, None, true),
            (soon, Some(9), false),
            (soon, Some(10), true),
            (long, None, true),
            (long, Some(10), false),
            (long, Some(60), true),
        ] {
            let ago = asked_ago.map(Duration::from_secs);
            assert_eq!(is_due(silent, ago), due, "{silent:?} {ago:?}");
        }
    }

    #[test]
    fn only_a_worker_that_answers_is_alive() {
        let answer =
            |status: u16, is_healthy| read(StatusCode::from_u16(status).unwrap(), is_healthy);
        assert_eq!(answer(200, true), Some(Answer::Ready));
        assert_eq!(answer(503, true), Some(Answer::NotReady));
        assert_eq!(answer(503, false), None, "a proxy says the same");
        for status in [204, 301, 401, 404, 429, 500, 502] {
            assert_eq!(answer(status, true), None, "{status}");
        }
    }

    #[tokio::test]
    async fn the_later_of_report_and_answer_counts() {
        let (liveness, mut node) = (Liveness::default(), node("a", 1, 0));
        node.last_seen_at = Time::now().minus(Duration::from_mins(2));
        let reported = Heard::reported(node.last_seen_at);
        assert_eq!(liveness.heard(&node), reported);
        assert!(liveness.take_turn(&node, Time::now()));
        assert!(
            !liveness.take_turn(&node, Time::now()),
            "it was asked just now"
        );
        assert_eq!(liveness.heard(&node), reported, "it has not answered");
        liveness.note(node.id, Answer::NotReady);
        let answered = liveness.heard(&node);
        assert!(answered.at > reported.at);
        assert!(answered.is_unready);
        let again = Node {
            last_seen_at: Time::now().plus(Duration::from_secs(1)),
            ..node.clone()
        };
        assert_eq!(liveness.heard(&again), Heard::reported(again.last_seen_at));
        liveness.keep_only(&[]);
        assert_eq!(liveness.heard(&node), reported);
    }
}
