//! Where nodes are called, and where they may not have us call.
//!
//! A node says itself where its Worker API is. That is looked at when it says so, so that it hears what is
//! wrong, and again at each connection, since a name may have another address by then. What the operator
//! says with `--worker-url` is not questioned.

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
    },
    store::Node,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// How long a name may take to be looked up while its node waits for an answer. One that takes longer is
/// looked up when it is called.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// A client for each reach. None uses a connection of another one.
pub(super) struct HttpClients([(AddressGuard, Client); 4]);

impl HttpClients {
    pub(super) fn new(settings: &Settings) -> Self {
        let networks: Arc<[_]> = settings.worker_url_allow.clone().into();
        Self(Reach::ALL.map(|reach| {
            let guard = AddressGuard::new(reach, Arc::clone(&networks));
            (guard.clone(), Client::with_guard(guard))
        }))
    }

    fn of(&self, reach: Reach) -> &(AddressGuard, Client) {
        &self.0[reach as usize]
    }
}

impl AppState {
    /// Where dispatch reaches a node: as the operator says, or else as the node does.
    pub(super) fn worker_url<'a>(&'a self, node: &'a Node) -> Option<&'a str> {
        self.settings
            .worker_urls
            .get(&node.slug)
            .or(node.worker_url.as_ref())
            .map(String::as_str)
    }

    /// The client that may call a node.
    pub(super) fn http_client_for(&self, node: &Node) -> &Client {
        let reach = if self.settings.worker_urls.contains_key(&node.slug) {
            Reach::Anywhere
        } else {
            node.capability.reach()
        };
        &self.nodes.clients.of(reach).1
    }

    /// Checks where a node says that its Worker API is, by where the node calls from, and notes that with
    /// the report. The report stands at the pointer `at`.
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
        let (guard, _) = self.nodes.clients.of(api.reach);
        match timeout(LOOKUP_TIMEOUT, resolve::resolve_host(host)).await {
            Ok(Ok(addresses)) => guard.filter(host, addresses).map(drop).map_err(|refused| {
                Problem::field(&format!("{at}/worker_api/base_url"), refused.to_string())
            }),
            // It may have an address later, and is looked at again then.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

/// Addresses that a node may name which calls from there. One that calls us by the address that is its own
/// runs on this machine; one that a proxy speaks for, which we don't know, does not show where it is.
fn reach_of_caller(request: &Request) -> Reach {
    let connection = &request.connection;
    let is_here = connection.client == connection.local.ip();
    match Reach::from_peer(connection.client) {
        Reach::Loopback if request.header("x-forwarded-for").is_some() => Reach::Routable,
        Reach::Routable if is_here => Reach::Loopback,
        reach => reach,
    }
}
