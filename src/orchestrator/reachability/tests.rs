//! Tests of the records of probes.

use super::*;

const URL: &str = "http://box:1";

fn unreachable() -> Result<(), Reason> {
    Err(Reason::from("the port is closed"))
}

#[tokio::test(start_paused = true)]
async fn node_is_pending_until_its_probe() {
    let (reachability, node) = (Reachability::default(), NodeId::new());
    reachability.mark_pending(node, URL);
    let reason = reachability.obstacle(node, URL).unwrap();
    assert!(reason.to_string().starts_with("starting"), "{reason}");
    let ticket = reachability.claim(node, URL).unwrap();
    assert_eq!(reachability.claim(node, URL), None, "one probe at a time");
    let change = reachability.record(node, ticket, Ok(()));
    assert_eq!(change, Some(Change::BecameReachable));
    assert_eq!(reachability.obstacle(node, URL), None);
    assert_eq!(reachability.claim(node, URL), None, "no probe is needed");
}

#[tokio::test(start_paused = true)]
async fn unreachable_node_is_probed_until_it_answers() {
    let (reachability, node) = (Reachability::default(), NodeId::new());
    let ticket = reachability.claim(node, URL).unwrap();
    assert_eq!(
        reachability.obstacle(node, URL),
        None,
        "it took jobs before"
    );
    let change = reachability.record(node, ticket, unreachable());
    assert_eq!(change, Some(Change::BecameUnreachable));
    for _ in 0..9 {
        assert_eq!(reachability.claim(node, URL), None, "not due yet");
        tokio::time::advance(MAX_BACKOFF).await;
        let ticket = reachability.claim(node, URL).unwrap();
        assert_eq!(reachability.record(node, ticket, unreachable()), None);
    }
    tokio::time::advance(MAX_BACKOFF).await;
    let ticket = reachability.claim(node, URL).unwrap();
    let change = reachability.record(node, ticket, Ok(()));
    assert_eq!(change, Some(Change::Recovered));
    assert_eq!(reachability.obstacle(node, URL), None);
}

#[tokio::test(start_paused = true)]
async fn overtaken_result_does_not_count() {
    let (reachability, node) = (Reachability::default(), NodeId::new());
    let first = reachability.claim(node, URL).unwrap();
    let moved = "http://box:2";
    reachability.mark_pending(node, moved);
    assert_eq!(reachability.claim(node, moved), None, "one at a time");
    assert_eq!(reachability.record(node, first, Ok(())), None);
    assert!(reachability.obstacle(node, moved).is_some());
    let second = reachability.claim(node, moved).unwrap();
    reachability.record(node, second, Ok(()));
    assert_eq!(reachability.obstacle(node, moved), None);
    assert!(reachability.obstacle(node, URL).is_some());
    assert!(
        reachability.claim(node, URL).is_some(),
        "a change of the address is probed"
    );
}

#[tokio::test(start_paused = true)]
async fn node_learns_of_failed_probe() {
    let (reachability, node) = (Reachability::default(), NodeId::new());
    assert!(reachability.failure(node).is_none());
    let ticket = reachability.claim(node, URL).unwrap();
    assert!(reachability.failure(node).is_none(), "no result yet");
    reachability.record(node, ticket, unreachable());
    let reason = reachability.failure(node).unwrap();
    assert_eq!(reason.for_admins(), "the port is closed");
    tokio::time::advance(MAX_BACKOFF).await;
    let ticket = reachability.claim(node, URL).unwrap();
    reachability.record(node, ticket, Ok(()));
    assert!(reachability.failure(node).is_none());
    // A node sees by itself that it has no tunnel.
    reachability.mark_pending(node, TUNNEL_URL);
    let ticket = reachability.claim(node, TUNNEL_URL).unwrap();
    reachability.record(node, ticket, unreachable());
    assert!(reachability.failure(node).is_none());
}
