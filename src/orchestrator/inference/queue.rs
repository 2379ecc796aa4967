//! Queue of calls: each gets a [`Permit`] of the node that [`choose`] names, at once or when one is free, in
//! [`Turns`] by user.
//!
//! The models of the nodes are read from the store, at most every [`REFRESH_INTERVAL`], and anew before a call is
//! refused for want of a model. Waiting calls look again every [`WAIT_INTERVAL`], since a node may come or go.

use super::{
    choice::{Candidate, choose},
    registry::Registry,
    turns::Turns,
};
use crate::{
    api::{
        NodeId, UserId,
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    orchestrator::AppState,
    store::Node,
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, time::timeout};

/// Age at which the models of the nodes are read again.
const REFRESH_INTERVAL: Duration = Duration::from_millis(100);
/// Interval at which a waiting call looks for nodes that came or went.
const WAIT_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a node that failed a call is the last choice.
const SUSPECT_TIME: Duration = Duration::from_secs(5);
/// Seconds after which a call may be sent again that found the queue full.
const RETRY_AFTER_SECONDS: u64 = 5;
/// Most names of models in an error.
const MAX_NAMED_MODELS: usize = 20;

/// Calls of models, under way and waiting.
pub(in crate::orchestrator) struct ModelQueue {
    concurrency: u32,
    capacity: usize,
    state: Mutex<State>,
    /// Held while the nodes are read from the store, so that callers share a read.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    registry: Arc<Registry>,
    read_at: Option<Instant>,
    waiting: Turns<UserId, Waiter>,
    nodes: HashMap<NodeId, NodeState>,
    calls: u64,
}

/// Calls of one node.
#[derive(Default)]
struct NodeState {
    /// Empty as long as the node has had no call.
    slug: String,
    in_flight: u32,
    last_call: u64,
    failed_at: Option<Instant>,
}

/// Call that waits for a node.
struct Waiter {
    model: String,
    /// Nodes that failed it already.
    except: Vec<NodeId>,
    granted: oneshot::Sender<Permit>,
}

/// Right to have a node compute a call; ends when dropped.
pub(super) struct Permit {
    pub(super) node: Arc<Node>,
    /// Queue in which it counts.
    queue: Option<Arc<ModelQueue>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.release(self.node.id);
        }
    }
}

/// Call for which a node is sought.
pub(super) struct Wanted<'a> {
    pub(super) user: UserId,
    pub(super) model: &'a str,
    /// Whether it takes a place at the node.
    pub(super) counts: bool,
    /// Nodes that failed it already.
    pub(super) except: &'a [NodeId],
}

impl ModelQueue {
    pub(in crate::orchestrator) fn new(concurrency: u32, capacity: u32) -> Self {
        Self {
            concurrency,
            capacity: capacity as usize,
            state: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// Models of the nodes, read again from the store where they are older than `age`.
    pub(super) async fn registry(
        self: &Arc<Self>,
        app: &AppState,
        age: Duration,
    ) -> Result<Arc<Registry>, ApiError> {
        let asked_at = Instant::now();
        if let Some(registry) = self.state.lock().registry_since(asked_at, age) {
            return Ok(registry);
        }
        let _reading = self.reading.lock().await;
        // A read that began meanwhile is as good as one's own.
        if let Some(registry) = self.state.lock().registry_since(asked_at, age) {
            return Ok(registry);
        }
        // Taken before the read, so that what changes during it counts as unread.
        let read_at = Instant::now();
        let nodes = app.store.node_list().await?;
        let registry = Registry::new(nodes, |node| app.model_obstacle(node));
        let registry = Arc::new(registry);
        {
            let mut state = self.state.lock();
            let serving = registry.nodes().iter();
            let serving: HashSet<_> = serving.map(|serving| serving.node.id).collect();
            let is_known =
                |id: &NodeId, node: &mut NodeState| node.in_flight > 0 || serving.contains(id);
            state.nodes.retain(is_known);
            state.registry = Arc::clone(&registry);
            state.read_at = Some(read_at);
        }
        self.grant_waiting();
        Ok(registry)
    }

    /// Permit of the best node for a call; waits for it in turn. Fails where no other node has the model, and where
    /// the queue is full.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        app: &AppState,
        wanted: Wanted<'_>,
    ) -> Result<Permit, ApiError> {
        let mut registry = self.registry(app, REFRESH_INTERVAL).await?;
        if !registry.has_other(wanted.model, wanted.except) {
            registry = self.registry(app, Duration::ZERO).await?;
        }
        if !registry.has_other(wanted.model, wanted.except) {
            return Err(missing(&registry, wanted.model).into());
        }
        if !wanted.counts {
            let node = self.pick(&registry, &wanted);
            let permit = node.map(|node| Permit { node, queue: None });
            return permit.ok_or_else(|| missing(&registry, wanted.model).into());
        }
        let (mut granted, _ticket) = self.enter(&wanted)?;
        loop {
            match timeout(WAIT_INTERVAL, &mut granted).await {
                Ok(Ok(permit)) => return Ok(permit),
                // The sender is dropped only to make room for a user with fewer waiting calls.
                Ok(Err(_)) => return Err(full().into()),
                Err(_) => {
                    let registry = self.registry(app, WAIT_INTERVAL).await?;
                    if !registry.has_other(wanted.model, wanted.except) {
                        return Err(missing(&registry, wanted.model).into());
                    }
                }
            }
        }
    }

    /// Marks a node as one that failed a call.
    pub(super) fn record_failure(&self, node: NodeId) {
        let mut state = self.state.lock();
        state.nodes.entry(node).or_default().failed_at = Some(Instant::now());
    }

    /// Number of waiting calls, and numbers of those under way, by the slug of the node.
    pub(in crate::orchestrator) fn counts(&self) -> (usize, HashMap<String, u32>) {
        let state = self.state.lock();
        let busy = state.nodes.values().filter(|node| node.in_flight > 0);
        let in_flight = busy.map(|node| (node.slug.clone(), node.in_flight));
        (state.waiting.len(), in_flight.collect())
    }

    /// Puts a call into the queue. The ticket takes it out again.
    fn enter<'a>(
        self: &'a Arc<Self>,
        wanted: &Wanted<'_>,
    ) -> Result<(oneshot::Receiver<Permit>, Ticket<'a>), Problem> {
        let (sender, granted) = oneshot::channel();
        let waiter = Waiter {
            model: wanted.model.to_owned(),
            except: wanted.except.to_vec(),
            granted: sender,
        };
        let user = wanted.user;
        let ticket = Ticket {
            queue: self,
            user,
            number: self.state.lock().waiting.push(user, waiter),
        };
        self.grant_waiting();
        let mut state = self.state.lock();
        if state.waiting.len() <= self.capacity {
            return Ok((granted, ticket));
        }
        let other = state.waiting.make_room(user);
        let is_refused = other.is_none() && state.waiting.remove(user, ticket.number).is_some();
        // The ticket takes the lock when it is dropped.
        drop(state);
        if is_refused {
            return Err(full());
        }
        Ok((granted, ticket))
    }

    /// Gives free places to waiting calls.
    fn grant_waiting(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state.lock();
                state.take_next(self.concurrency)
            };
            let Some((waiter, node)) = next else {
                return;
            };
            let permit = Permit {
                node,
                queue: Some(Arc::clone(self)),
            };
            // Where the caller has left, the permit comes back and is dropped, outside of the lock.
            let _ = waiter.granted.send(permit);
        }
    }

    fn release(self: &Arc<Self>, node: NodeId) {
        {
            let mut state = self.state.lock();
            if let Some(node) = state.nodes.get_mut(&node) {
                node.in_flight = node.in_flight.saturating_sub(1);
            }
        }
        self.grant_waiting();
    }

    /// Best node for a call that takes no place.
    fn pick(&self, registry: &Registry, wanted: &Wanted<'_>) -> Option<Arc<Node>> {
        let state = self.state.lock();
        state.choose(registry, wanted.model, wanted.except, u32::MAX)
    }
}

impl State {
    /// Registry, where it was read at most `age` before `time`, or after it.
    fn registry_since(&self, time: Instant, age: Duration) -> Option<Arc<Registry>> {
        let read_at = self.read_at?;
        let is_fresh = time.saturating_duration_since(read_at) <= age;
        is_fresh.then(|| Arc::clone(&self.registry))
    }

    /// Takes the next waiting call for which a node is free, and counts it there.
    fn take_next(&mut self, limit: u32) -> Option<(Waiter, Arc<Node>)> {
        if self.waiting.len() == 0 {
            return None;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let registry = Arc::clone(&self.registry);
        let next =
            waiting.take(|waiter| self.choose(&registry, &waiter.model, &waiter.except, limit));
        self.waiting = waiting;
        let (waiter, node) = next?;
        self.calls += 1;
        let state = self.nodes.entry(node.id).or_default();
        state.in_flight += 1;
        state.slug.clone_from(&node.slug);
        state.last_call = self.calls;
        Some((waiter, node))
    }

    fn choose(
        &self,
        registry: &Registry,
        model: &str,
        except: &[NodeId],
        limit: u32,
    ) -> Option<Arc<Node>> {
        let candidates = registry
            .find(model)
            .filter(|(serving, _)| !except.contains(&serving.node.id));
        let candidate = |(serving, is_loaded): (&super::registry::ServingNode, bool)| {
            let state = self.nodes.get(&serving.node.id);
            let failed_at = state.and_then(|state| state.failed_at);
            Candidate {
                node: serving.node.id,
                is_loaded,
                in_flight: state.map_or(0, |state| state.in_flight),
                is_suspect: failed_at.is_some_and(|at| at.elapsed() < SUSPECT_TIME),
                last_call: state.map_or(0, |state| state.last_call),
            }
        };
        let chosen = choose(candidates.map(candidate), limit)?;
        let mut nodes = registry.nodes().iter();
        let found = nodes.find(|serving| serving.node.id == chosen)?;
        Some(Arc::clone(&found.node))
    }
}

/// Place of a call in the queue; given up when dropped.
struct Ticket<'a> {
    queue: &'a Arc<ModelQueue>,
    user: UserId,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let waiter = self
            .queue
            .state
            .lock()
            .waiting
            .remove(self.user, self.number);
        drop(waiter);
    }
}

fn full() -> Problem {
    let detail = "too many calls of models wait for a node; send this one again in a moment";
    Problem::new(ProblemKind::QueueFull, detail).retry_after(RETRY_AFTER_SECONDS)
}

/// Problem of a model that no serving node has, or none that did not fail the call.
fn missing(registry: &Registry, model: &str) -> Problem {
    if registry.find(model).next().is_some() {
        let detail = format!(
            "each node that has the model {model:?} failed this call; send it again in a moment"
        );
        return Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER_SECONDS);
    }
    if let Some(absent) = registry.absent(model) {
        let (slug, reason) = (&absent.slug, &absent.reason);
        let detail = format!(
            "the model {model:?} is on the node {slug}, which can't serve it now: {reason}"
        );
        return Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER_SECONDS);
    }
    if registry.nodes().is_empty() {
        return none_ready(registry);
    }
    let models = registry.models();
    let names: Vec<_> = models.keys().take(MAX_NAMED_MODELS).copied().collect();
    let list = match (names.len(), models.len()) {
        (0, _) => "none yet; an admin can add one with cynode models pull".to_owned(),
        (named, all) if named < all => format!("{} and {} more", names.join(", "), all - named),
        _ => names.join(", "),
    };
    let detail = format!("no node has the model {model:?}; there are: {list}");
    Problem::new(ProblemKind::ModelNotFound, detail).about("model")
}

/// Problem of a call that any model server could answer, where there is none.
pub(super) fn none_ready(registry: &Registry) -> Problem {
    let detail = match registry.count() {
        0 => "no node is registered; start one with cynode node on a machine with a GPU",
        _ => {
            "no node serves models now; see cynode nodes list, or start a node with --inference on"
        }
    };
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER_SECONDS)
}

#[cfg(test)]
mod tests;
