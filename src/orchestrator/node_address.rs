//! Addresses at which nodes are called, and addresses that they may not name.
//!
//! A node reports the URL of its Worker API itself. It is checked with the report, so that the node gets the
//! error, and again at each connection, since its name may resolve to another address by then. A URL that the
//! operator sets with `--worker-url` is not checked.
//!
//! A node that opens a [tunnel](super::tunnels) is called there, and needs no address.

use super::{AppState, Settings};
use crate::{
    api::{
        nodes::{CapabilityReport, Reach},
        problem::Problem,
    },
    http::{
        client::Client,
        request::Request,
        resolve::{self, AddressGuard},
        tunnel::TUNNEL_URL,
    },
    store::Node,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Time limit of a name lookup while the node waits for the answer to its report. A name that takes longer is
/// checked when it is called.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// HTTP client for each reach, with connections of its own.
pub(super) struct HttpClients([(AddressGuard, Client); 4]);

impl HttpClients {
    pub(super) fn new(settings: &Settings) -> Self {
        let networks: Arc<[_]> = settings.worker_url_allow.clone().into();
        Self(Reach::ALL.map(|reach| {
            let guard = AddressGuard::new(reach, Arc::clone(&networks));
            (guard.clone(), Client::with_guard(guard))
        }))
    }

    fn for_reach(&self, reach: Reach) -> &(AddressGuard, Client) {
        &self.0[reach as usize]
    }
}

impl AppState {
    /// URL of a node's Worker API: the operator's, or else [that of its tunnel](TUNNEL_URL), where it is connected, or
    /// else the one that the node reported. A node without one that opens a tunnel is called there once it has.
    pub(super) fn worker_url<'a>(&'a self, node: &'a Node) -> Option<&'a str> {
        let tunnel = |is_used: bool| is_used.then_some(TUNNEL_URL);
        let set = self.settings.worker_urls.get(&node.slug);
        set.map(String::as_str)
            .or_else(|| tunnel(self.nodes.tunnels.is_connected(node.id)))
            .or(node.worker_url.as_deref())
            .or_else(|| tunnel(node.capability.has_tunnel()))
    }

    /// Same, where it is no tunnel.
    pub(super) fn listening_url<'a>(&'a self, node: &'a Node) -> Option<&'a str> {
        self.worker_url(node).filter(|url| *url != TUNNEL_URL)
    }

    /// Same, where the node may be called: not in a drill.
    pub(super) fn callable_url<'a>(&'a self, node: &'a Node) -> Option<&'a str> {
        self.worker_url(node).filter(|_| !self.settings.drill)
    }

    /// HTTP client that may call a node at this URL.
    pub(super) fn http_client_for(&self, node: &Node, url: &str) -> Client {
        if url == TUNNEL_URL {
            return self.nodes.tunnels.client(node.id);
        }
        let reach = if self.settings.worker_urls.contains_key(&node.slug) {
            Reach::Anywhere
        } else {
            node.capability.reach()
        };
        self.nodes.clients.for_reach(reach).1.clone()
    }

    /// Checks the URL of the Worker API in a report against the address that the node calls from, and records the
    /// reach of that address in the report. `at` is the JSON pointer of the report, for the error.
    pub(super) async fn check_worker_address(
        &self,
        request: &Request,
        report: &mut CapabilityReport,
        at: &str,
    ) -> Result<(), Problem> {
        let Some(api) = &mut report.worker_api else {
            return Ok(());
        };
        api.reach = reach_of_caller(request);
        let url = api.base_url.parse::<http::Uri>().ok();
        let Some(host) = url.as_ref().and_then(http::Uri::host) else {
            return Ok(());
        };
        if self
            .settings
            .worker_urls
            .contains_key(&report.node.node_slug)
        {
            return Ok(());
        }
        let (guard, _) = self.nodes.clients.for_reach(api.reach);
        match timeout(LOOKUP_TIMEOUT, resolve::resolve_host(host)).await {
            Ok(Ok(addresses)) => match guard.filter(host, addresses) {
                Ok(_) => Ok(()),
                // It is called on its tunnel, and listens for programs of its own machine.
                Err(_) if api.tunnel => {
                    api.base_url.clear();
                    Ok(())
                }
                Err(refused) => {
                    let pointer = format!("{at}/worker_api/base_url");
                    Err(Problem::field(&pointer, refused.to_string()))
                }
            },
            // The name may resolve later, and is checked when it is called.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

/// Reach of the addresses that a node may name, by the address that it calls from. A caller whose address is
/// the one that it called runs on this machine; a caller behind an unknown proxy does not show where it runs.
fn reach_of_caller(request: &Request) -> Reach {
    let connection = &request.connection;
    let is_here = connection.client == connection.local.ip();
    match Reach::from_peer(connection.client) {
        Reach::Loopback if request.header("x-forwarded-for").is_some() => Reach::Routable,
        Reach::Routable if is_here => Reach::Loopback,
        reach => reach,
    }
}
