//! Both ends of a shim's socket, against each other.

use super::*;
use crate::sandbox::StopReason;

#[tokio::test]
async fn socket_ends_agree_on_protocol() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ShimHandle::connect(dir.path()).await.unwrap().is_none());
    let listener = UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap();
    let mut handle = ShimHandle::connect(dir.path()).await.unwrap().unwrap();
    // Before the shim has announced its protocol.
    handle.stop(StopRequest::new(StopReason::Canceled));

    let (updates, receiver) = watch::channel(());
    let stops = Stops::new();
    let server = background::spawn(
        "test",
        server::serve(listener, receiver, stops.clone(), watch::Sender::new(())),
    );
    assert!(handle.changed().await, "hello");
    tokio::select! {
        reason = stops.requested() => assert_eq!(reason, StopReason::Canceled),
        _ = handle.changed() => panic!("an update of nothing"),
    }
    updates.send_replace(());
    assert!(handle.changed().await, "update");

    let mut next = ShimHandle::connect(dir.path()).await.unwrap().unwrap();
    assert!(next.changed().await, "hello");
    assert!(!handle.changed().await, "replaced by the next owner");
    drop(updates);
    server.await.unwrap();
    assert!(!next.changed().await, "the shim is gone");
    assert!(ShimHandle::connect(dir.path()).await.unwrap().is_none());
}
