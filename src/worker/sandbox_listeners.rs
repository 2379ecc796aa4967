//! Listeners of a sandbox in its worker: taken from the shim, and served for as long as the job runs.
//!
//! A job has listeners for models, for the proxy, for both or for none. They stay in the shim while the worker is
//! restarted, and each worker takes them at its start.

use super::{context::WorkerContext, edge::EdgeAccess, egress, ledger::Job, sandbox_inference};
use crate::{
    backoff::Backoff,
    http::private::PrivateListener,
    retry::retry,
    sandbox::listeners::{self, Handover, SandboxListener},
};
use std::{convert::Infallible, future::pending, io, path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch, time::timeout};

/// Time for a shim to hand the listeners over.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay before a shim is asked again that did not hand them over, such as for want of free descriptors.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Serves models and the proxy in the sandbox of a job that may use them, from the time on when its shim has the
/// listeners. Never ends; when dropped, all calls end.
pub(super) async fn serve_listeners(ctx: &WorkerContext, job: &Arc<Job>) -> Infallible {
    if !job.accepted.inference && job.accepted.egress.is_none() {
        return pending().await;
    }
    let backoff = Backoff::new(RETRY_INTERVAL, RETRY_INTERVAL);
    let taken = retry(backoff, "take the listeners of a sandbox", || {
        take_listeners(job.spool.path(), job.subscribe())
    });
    let Handover { listeners, access } = taken.await;
    let (models, proxies) = split(listeners);
    let _models = (!models.is_empty()).then(|| sandbox_inference::serve(ctx, job, models));
    let Some(allowed) = &job.accepted.egress else {
        return pending().await;
    };
    let access = access.and_then(|access| EdgeAccess::decode(&access));
    egress::serve(ctx, job, (allowed, access), proxies).await
}

/// Listeners for models, and those for the proxy.
fn split(listeners: Vec<SandboxListener>) -> (Vec<PrivateListener>, Vec<TcpListener>) {
    let (mut models, mut proxies) = (Vec::new(), Vec::new());
    for listener in listeners {
        match listener {
            SandboxListener::InferenceUnix(listener) => {
                models.push(PrivateListener::Unix(listener))
            }
            SandboxListener::InferenceTcp(listener) => models.push(PrivateListener::Tcp(listener)),
            SandboxListener::EgressTcp(listener) => proxies.push(listener),
        }
    }
    (models, proxies)
}

/// Listeners of the shim in `dir`, with its access, as soon as it has them, of which it notifies `updates`.
async fn take_listeners(dir: &Path, mut updates: watch::Receiver<()>) -> io::Result<Handover> {
    loop {
        updates.mark_unchanged();
        let taken = timeout(HANDOVER_TIMEOUT, listeners::take(dir)).await;
        let taken = taken.map_err(|_| io::Error::other("the shim does not hand them over"))?;
        if let Some(taken) = taken? {
            return Ok(taken);
        }
        // An update that was lost is made up for.
        let _ = timeout(RETRY_INTERVAL, updates.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{listeners::Received, *};
    use crate::sandbox_init::listeners::ListenerKind;

    #[tokio::test]
    async fn listeners_are_taken_when_there() {
        let dir = tempfile::tempdir().unwrap();
        let (received, updates) = (Received::new(None), watch::Sender::new(()));
        let dir_of_shim = dir.path().to_owned();
        let handed_over =
            listeners::hand_over(dir_of_shim, received.subscribe(), None, updates.clone());
        let mut seen = updates.subscribe();
        let taken = async {
            let later = async {
                let socket = std::os::unix::net::UnixListener::bind(dir.path().join("a")).unwrap();
                let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                received.send_replace(Some(vec![
                    (ListenerKind::InferenceUnix, socket.into()),
                    (ListenerKind::EgressTcp, tcp.into()),
                ]));
                seen.changed().await.unwrap();
            };
            let (taken, ()) = tokio::join!(take_listeners(dir.path(), updates.subscribe()), later);
            taken
        };
        tokio::select! {
            ended = handed_over => panic!("ended early: {ended:?}"),
            taken = taken => {
                let (models, proxies) = split(taken.unwrap().listeners);
                assert_eq!((models.len(), proxies.len()), (1, 1));
            }
        }
    }

    #[tokio::test]
    async fn shims_out_of_reach_are_errors() {
        let no_dir = tempfile::NamedTempFile::new().unwrap();
        let updates = watch::Sender::new(());
        let taken = take_listeners(no_dir.path(), updates.subscribe()).await;
        assert!(taken.is_err(), "tried again by the timer, not by updates");
    }
}
