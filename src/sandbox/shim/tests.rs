//! Both ends of a shim's socket, against each other.

use super::*;
use crate::sandbox::StopReason;
use std::time::Duration;

#[tokio::test]
async fn socket_ends_agree_on_protocol() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ShimHandle::connect(dir.path()).await.unwrap().is_none());
    let listener = UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap();
    let mut handle = ShimHandle::connect(dir.path()).await.unwrap().unwrap();
    // Before the shim has announced its protocol.
    let stop = StopRequest::within(StopReason::Canceled, Duration::ZERO);
    handle.stop(stop);
    handle.stop(StopRequest::new(StopReason::Shutdown));
    handle.notify_stdin();
    assert!(!handle.takes_notes());

    let (updates, receiver) = watch::channel(());
    let stops = Stops::new();
    let (stdin, mut notices) = watch::channel(());
    let (ready, is_ready) = watch::channel(false);
    let (assign, mut assignment) = oneshot::channel();
    let (noted, mut notes) = mpsc::channel(1);
    let server = Server {
        updates: receiver,
        ready: is_ready,
        stops: stops.clone(),
        stdin,
        assign: Some(assign),
        notes: noted,
    };
    let server = background::spawn("test", server.serve(listener));
    assert!(handle.changed().await, "hello");
    // That of the connection itself.
    notices.changed().await.unwrap();
    tokio::select! {
        request = stops.next(None) => assert_eq!(request, stop),
        _ = handle.changed() => panic!("an update of nothing"),
    }
    tokio::select! {
        notice = notices.changed() => notice.unwrap(),
        _ = handle.changed() => panic!("an update of nothing"),
    }
    updates.send_replace(());
    assert!(handle.changed().await, "update");
    ready.send_replace(true);
    assert!(handle.ready().await);
    handle.assign(&"guest").unwrap();
    tokio::select! {
        assigned = &mut assignment => assert_eq!(assigned.unwrap(), "\"guest\""),
        _ = handle.changed() => panic!("an update of nothing"),
    }
    assert!(handle.takes_notes());
    handle.note(b"note");
    tokio::select! {
        note = notes.recv() => assert_eq!(note.unwrap(), "note"),
        _ = handle.changed() => panic!("an update of nothing"),
    }

    let mut next = ShimHandle::connect(dir.path()).await.unwrap().unwrap();
    assert!(next.changed().await, "hello");
    assert!(!handle.changed().await, "replaced by the next owner");
    drop(updates);
    server.await.unwrap();
    assert!(!next.changed().await, "the shim is gone");
    assert!(ShimHandle::connect(dir.path()).await.unwrap().is_none());
}
