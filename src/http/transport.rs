//! Way of calls to their server: a pool of connections, or the tunnel that the server has opened.

use super::{
    call_error::{CallError, not_sent},
    client::CallBody,
    resolve::{AddressGuard, Connector},
    tunnel::TunnelLink,
};
use crate::tls::Trust;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use std::{sync::Arc, time::Duration};

/// Time for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Way of calls to their server; cheap to clone.
#[derive(Clone)]
pub(super) enum Transport {
    /// Pool of connections.
    Pool(Arc<legacy::Client<Connector, CallBody>>),
    /// Connection that the server has opened.
    Tunnel(TunnelLink),
}

impl Transport {
    /// Pool of connections to addresses that `guard` allows, which are kept for `idle_timeout`.
    pub(super) fn pool(guard: AddressGuard, trust: Trust, idle_timeout: Duration) -> Self {
        let pool = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(idle_timeout)
            .build(connector(guard, trust));
        Self::Pool(Arc::new(pool))
    }

    /// Sends a request to `url`, and receives the head of an answer of any status.
    pub(super) async fn request(
        &self,
        url: &str,
        request: http::Request<CallBody>,
    ) -> Result<http::Response<Incoming>, CallError> {
        match self {
            Self::Pool(pool) => {
                let answer = pool.request(request).await;
                answer.map_err(|error| not_sent(url, &error))
            }
            Self::Tunnel(link) => link.request(url, request).await,
        }
    }
}

/// Connector whose connections show a peer that has lost power.
pub(super) fn connector(guard: AddressGuard, trust: Trust) -> Connector {
    Connector::new(guard, trust, |connector| {
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        // A node that lost power sends no FIN; keepalive detects that within about 20 s.
        connector.set_keepalive(Some(Duration::from_secs(10)));
        connector.set_keepalive_interval(Some(Duration::from_secs(5)));
        connector.set_keepalive_retries(Some(2));
        // Same for sent data that is not acknowledged, which keepalive does not cover.
        #[cfg(target_os = "linux")]
        connector.set_tcp_user_timeout(Some(Duration::from_secs(20)));
    })
}
