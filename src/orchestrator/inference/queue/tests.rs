//! Queue without a store: places of nodes, turns of users, callers that leave.

use super::*;
use crate::orchestrator::inference::registry::tests::node;
use serde_json::json;
use tokio::sync::oneshot::error::TryRecvError;

/// Queue over nodes that have the model `m`, each with its slug.
fn queue(concurrency: u32, capacity: u32, slugs: &[&str]) -> Arc<ModelQueue> {
    let queue = ModelQueue::new(concurrency, capacity);
    let nodes = slugs.iter();
    let nodes = nodes.map(|slug| node(slug, json!({"models": ["m:latest"]})));
    let registry = Registry::new(nodes.collect(), |_| None);
    queue.state.lock().registry = Arc::new(registry);
    Arc::new(queue)
}

type Entered<'a> = (oneshot::Receiver<Permit>, Ticket<'a>);

fn enter(queue: &Arc<ModelQueue>, user: UserId) -> Result<Entered<'_>, Problem> {
    queue.enter(&Wanted {
        user,
        model: "m",
        counts: true,
        except: &[],
    })
}

/// Numbers of waiting calls, and of those under way.
fn counts(queue: &ModelQueue) -> (usize, u32) {
    let (waiting, in_flight) = queue.counts();
    (waiting, in_flight.values().sum())
}

fn granted(entered: &mut Entered<'_>) -> Option<Permit> {
    entered.0.try_recv().ok()
}

#[test]
fn free_places_are_given_at_once_and_evenly() {
    let queue = queue(2, 9, &["a", "b"]);
    let user = UserId::new();
    let permits: Vec<_> = (0..4)
        .map(|_| granted(&mut enter(&queue, user).unwrap()).unwrap())
        .collect();
    let on = |slug| {
        permits
            .iter()
            .filter(|permit| permit.node.slug == slug)
            .count()
    };
    assert_eq!((on("a"), on("b")), (2, 2));
    assert_eq!(counts(&queue), (0, 4));
    assert!(granted(&mut enter(&queue, user).unwrap()).is_none());
    assert_eq!(counts(&queue), (0, 4), "the ticket was dropped");
    drop(permits);
    assert_eq!(counts(&queue), (0, 0));
}

#[test]
fn freed_place_goes_to_next_user() {
    let queue = queue(1, 9, &["a"]);
    let (ann, bob) = (UserId::new(), UserId::new());
    let mut first = enter(&queue, ann).unwrap();
    let permit = granted(&mut first).unwrap();
    let mut waiting: Vec<_> = [ann, ann, bob]
        .into_iter()
        .map(|user| enter(&queue, user).unwrap())
        .collect();
    assert!(waiting.iter_mut().all(|entered| granted(entered).is_none()));
    drop(permit);
    let permit = granted(&mut waiting[0]).unwrap();
    drop(permit);
    assert!(granted(&mut waiting[1]).is_none());
    let permit = granted(&mut waiting[2]).unwrap();
    drop(permit);
    assert!(granted(&mut waiting[1]).is_some());
}

#[test]
fn place_of_caller_that_left_is_free() {
    let queue = queue(1, 9, &["a"]);
    let user = UserId::new();
    // The permit is granted, and nobody takes it.
    drop(enter(&queue, user).unwrap());
    assert_eq!(counts(&queue), (0, 0));
    let mut first = enter(&queue, user).unwrap();
    let permit = granted(&mut first).unwrap();
    let second = enter(&queue, user).unwrap();
    let mut third = enter(&queue, user).unwrap();
    assert_eq!(counts(&queue), (2, 1));
    drop(second);
    assert_eq!(counts(&queue), (1, 1));
    drop(permit);
    assert!(granted(&mut third).is_some());
    assert_eq!(counts(&queue), (0, 0));
}

#[test]
fn full_queue_refuses_user_with_most() {
    let queue = queue(1, 2, &["a"]);
    let (ann, bob) = (UserId::new(), UserId::new());
    let mut first = enter(&queue, ann).unwrap();
    let permit = granted(&mut first).unwrap();
    let mut older = enter(&queue, ann).unwrap();
    let mut newer = enter(&queue, ann).unwrap();
    let refused = enter(&queue, ann).err().unwrap();
    assert_eq!(refused.kind, ProblemKind::QueueFull);
    assert!(refused.retry_after.is_some());
    let mut bobs = enter(&queue, bob).unwrap();
    let error = newer.0.try_recv().err().unwrap();
    assert_eq!(error, TryRecvError::Closed, "it made room for another user");
    drop(permit);
    let permit = granted(&mut older).unwrap();
    drop(permit);
    assert!(granted(&mut bobs).is_some());
}

#[test]
fn failed_node_is_last_choice() {
    let queue = queue(2, 9, &["a", "b"]);
    let user = UserId::new();
    let permit = granted(&mut enter(&queue, user).unwrap()).unwrap();
    let failed = permit.node.id;
    queue.record_failure(failed);
    drop(permit);
    for _ in 0..3 {
        let permit = granted(&mut enter(&queue, user).unwrap()).unwrap();
        assert_ne!(permit.node.id, failed);
    }
}

#[test]
fn excluded_node_is_never_given() {
    let queue = queue(2, 9, &["a"]);
    let registry = Arc::clone(&queue.state.lock().registry);
    let id = registry.nodes()[0].node.id;
    let wanted = Wanted {
        user: UserId::new(),
        model: "m",
        counts: true,
        except: &[id],
    };
    let mut entered = queue.enter(&wanted).unwrap();
    assert!(granted(&mut entered).is_none());
    assert!(!registry.has_other("m", &[id]));
}

#[test]
fn missing_model_is_explained() {
    let nodes = vec![
        node("a", json!({"models": ["m:latest", "n:7b"]})),
        node("off", json!({"models": ["x:1b"]})),
    ];
    let registry = Registry::new(nodes, |node| {
        (node.slug == "off").then(|| "no contact for 40 s".to_owned())
    });
    let unknown = missing(&registry, "y");
    assert_eq!(unknown.kind, ProblemKind::ModelNotFound);
    assert!(
        unknown.detail.contains("there are: m:latest, n:7b"),
        "{}",
        unknown.detail
    );
    let absent = missing(&registry, "x:1b");
    assert_eq!(absent.kind, ProblemKind::Unavailable);
    assert!(absent.detail.contains("node off") && absent.detail.contains("40 s"));
    let failed = missing(&registry, "n:7b");
    assert_eq!(failed.kind, ProblemKind::Unavailable);
    assert!(failed.detail.contains("failed this call"));
    let none = missing(&Registry::default(), "m");
    assert_eq!(none.kind, ProblemKind::Unavailable);
    assert!(
        none.detail.contains("no node is registered"),
        "{}",
        none.detail
    );
}

#[test]
fn read_that_began_later_is_fresh() {
    let queue = queue(1, 1, &["a"]);
    let mut state = queue.state.lock();
    let asked_at = Instant::now();
    let age = Duration::from_secs(1);
    assert!(state.registry_since(asked_at, Duration::MAX).is_none());
    for (read_at, fresh_at) in [
        (asked_at.checked_sub(age), [false, true]),
        (asked_at.checked_sub(2 * age), [false, false]),
        (asked_at.checked_add(age), [true, true]),
    ] {
        state.read_at = read_at;
        let found = [Duration::ZERO, age].map(|age| state.registry_since(asked_at, age).is_some());
        assert_eq!(found, fresh_at);
    }
}
