//! Hosts that a job may reach, through a proxy of its node: the sandbox has no network device, and nothing leads out of
//! it but this.
//!
//! ```text
//! command ── HTTP_PROXY ──▶ 127.0.0.1:3128, init's listener ──▶ this worker ──▶ host
//! ```
//!
//! Each sandbox has a server of its own, on the [listeners](super::sandbox_listeners) that its init opened, so the
//! listener that a request came from says which job made it. A request passes, in this order: its [form](request); the
//! [lists](decision) of the job and of the node; the limit of the job's bytes; the [addresses](address) of the host, all of
//! which are checked and one of which is dialled ([`route`]); for a tunnel to port 443, the name in the
//! [client hello](client_hello). Then bytes pass as they are, [counted](tally), unless the job asked for the host's TLS to be
//! [opened](terminate): each request in the tunnel is then an [exchange], into which [secrets](super::edge) are put.
//! Decisions and ends are [reported](notices) in the job's log.
//!
//! What this does not keep a job from: to send anything to a host that it may reach, and to say other things in a tunnel
//! to a port other than 443, such as another `Host` in plain HTTP. DNS is the node's: a job asks for no name but those on
//! its list.
//!
//! Connections end with the job, and with this process. The listeners stay, and the next process takes them.
//!
//! Downloads of HTTP may come from a [cache] of the node, where their host confirms them.

mod activity;
mod address;
mod cache;
mod client_hello;
mod decision;
mod exchange;
mod limits;
mod metrics;
mod notices;
mod rate;
mod refusal;
mod relay;
mod request;
mod route;
mod server;
mod tally;
mod terminate;
mod tunnel;

pub use limits::EgressLimits;
pub(super) use metrics::EgressMetrics;
pub(super) use tally::Tally;

use super::{
    context::WorkerContext,
    edge::{Edge, EdgeAccess},
    ledger::Job,
};
use crate::{
    api::egress::{EgressSpec, PROXY_PORT},
    background,
    http::listener_policy::available_descriptors,
    sandbox_init::listeners::{EGRESS_PORT, JAVA_OPTIONS},
    tls::Trust,
};
use address::AddressPolicy;
use cache::{Cache, JobCache};
use decision::{Lists, Verdict};
use notices::Notices;
use rate::Rate;
use refusal::Refusal;
use request::Target;
use route::Route;
use std::{convert::Infallible, ffi::OsString, path::Path, sync::Arc, time::Duration};
use tally::Meter;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::sleep,
};

/// Connections of one sandbox at a time.
const MAX_CONNECTIONS: usize = 256;
/// Connections of all sandboxes of a node at a time, where the system has file descriptors for them.
const MAX_NODE_CONNECTIONS: usize = 2048;
/// Connections that a sandbox has at any time: the last quarter of the node's is for sandboxes with no more, so that some
/// can't keep others from the network.
const FEW_CONNECTIONS: usize = 32;
/// Connections of one sandbox that are told at a time that they have no place; more are closed without a word.
const MAX_TURNED_AWAY: usize = 32;
/// Interval at which sums that have changed are saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

// Init may import nothing of ours, and knows the port by itself.
const _: () = assert!(PROXY_PORT == EGRESS_PORT);

/// What all proxies of a node share.
pub(super) struct EgressGateway {
    limits: EgressLimits,
    route: Arc<Route>,
    /// Authorities of the system, by which hosts are trusted whose TLS is opened.
    trust: Trust,
    room: Arc<Semaphore>,
    /// Places in `room` that are for sandboxes with few connections.
    reserve: usize,
    cache: Arc<Cache>,
}

impl EgressGateway {
    /// Gateway with the operator's limits, whose cache is in the home of a worker and leaves so many bytes of the disk free.
    pub(super) fn new(
        limits: EgressLimits,
        (home, min_free): (&Path, u64),
        metrics: &EgressMetrics,
    ) -> Self {
        let connections = node_connections();
        Self {
            cache: Arc::new(Cache::new(home, limits.cache, min_free, metrics)),
            route: Arc::new(Route::new(limits.upstream.as_deref())),
            trust: Trust::default(),
            limits,
            room: Arc::new(Semaphore::new(connections)),
            reserve: connections / 4,
        }
    }

    /// Opens the cache of downloads, once, after which it stores some.
    pub(super) async fn open_cache(&self) {
        self.cache.open().await;
    }

    /// Removes downloads from the cache while the disk is short.
    pub(super) async fn make_room(&self) {
        self.cache.make_room().await;
    }
}

/// Connections of all sandboxes of this node at a time.
fn node_connections() -> usize {
    // A tunnel has six descriptors, for two sockets and two pipes. A quarter of all is for them: two listeners of the node
    // take a half, and jobs in their start need some, too.
    let room = available_descriptors().map(|files| files / 24);
    let room = room.and_then(|room| usize::try_from(room).ok());
    MAX_NODE_CONNECTIONS.min(room.unwrap_or(usize::MAX)).max(1)
}

/// Proxy of one sandbox.
struct Proxy {
    lists: Lists,
    addresses: AddressPolicy,
    route: Arc<Route>,
    trust: Trust,
    edge: Edge,
    meter: Arc<Meter>,
    notices: Arc<Notices>,
    rate: Rate,
    /// Places of this sandbox's connections.
    room: Arc<Semaphore>,
    /// Places of all connections of the node.
    node_room: Arc<Semaphore>,
    /// Of those, the ones for sandboxes with few connections.
    reserve: usize,
    /// Places of connections that have none, while they are told so.
    turned_away: Arc<Semaphore>,
    cache: JobCache,
}

impl Proxy {
    fn new(
        ctx: &WorkerContext,
        job: &Job,
        (allowed, access): (&EgressSpec, Option<EdgeAccess>),
    ) -> Self {
        let EgressGateway {
            limits,
            route,
            trust,
            room,
            reserve,
            cache,
        } = &ctx.egress;
        let meter = Meter::new(
            Arc::clone(&job.egress),
            allowed.max_bytes,
            ctx.metrics.egress.clone(),
            job.accepted.has_secrets,
        );
        Self {
            lists: Lists::new(allowed.allow.clone(), limits.allow.clone()),
            addresses: AddressPolicy::new(
                allowed.allow_private.clone(),
                limits.allow_private.clone(),
            ),
            route: Arc::clone(route),
            trust: trust.clone(),
            edge: Edge::new(access),
            meter: Arc::new(meter),
            notices: Arc::new(Notices::new(job, allowed)),
            rate: Rate::new(),
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            node_room: Arc::clone(room),
            reserve: *reserve,
            turned_away: Arc::new(Semaphore::new(MAX_TURNED_AWAY)),
            cache: cache.of_job(job.accepted.has_secrets),
        }
    }

    /// Refuses a host that a list lacks, and any where the job has used all that it may.
    fn check(&self, target: &Target) -> Result<(), Refusal> {
        if let Verdict::Refused(missing_from) = self.lists.decide(&target.host, target.port) {
            return Err(Refusal::not_listed(target, missing_from));
        }
        match self.meter.excess() {
            Some(limit) => Err(Refusal::used_up(limit)),
            None => Ok(()),
        }
    }
}

/// Serves the proxy in the sandbox of a job, by what it may reach and what its shim has kept. Never ends; when dropped, all
/// connections end.
pub(super) async fn serve(
    ctx: &WorkerContext,
    job: &Arc<Job>,
    allowed: (&EgressSpec, Option<EdgeAccess>),
    listeners: Vec<TcpListener>,
) -> Infallible {
    let tally = Arc::clone(&job.egress);
    // Before the first request, since the limit is one of all attempts to count.
    if let Err(error) = job.with_spool(move |spool| tally.restore(spool)).await {
        tracing::warn!(%error, "sums of the job's proxy not read; counting from zero");
    }
    let proxy = Arc::new(Proxy::new(ctx, job, allowed));
    let (_stop, stopped) = watch::channel(false);
    for listener in listeners {
        let served = server::serve_listener(Arc::clone(&proxy), listener, stopped.clone());
        background::spawn("egress_listener", served);
    }
    loop {
        sleep(SAVE_INTERVAL).await;
        save(job, false).await;
    }
}

/// Makes the sums of a job final, which has ended.
pub(super) async fn finish(job: &Arc<Job>) {
    if job.accepted.egress.is_some() {
        save(job, true).await;
    }
}

/// Saves the sums of a job where they have changed.
async fn save(job: &Arc<Job>, is_final: bool) {
    let tally = Arc::clone(&job.egress);
    if !is_final && !tally.has_changed() {
        return;
    }
    let saved = job.with_spool(move |spool| tally.save(spool, is_final));
    if let Err(error) = saved.await.flatten() {
        tracing::warn!(%error, "sums of the job's proxy not saved");
    }
}

/// Variables by which programs find the proxy, in both cases, since programs differ in which they read: curl, git, cargo,
/// pip, npm, Go and most others need no more. Node itself and Java need to be told.
///
/// The address is written as a number: a program without a resolver finds it, too.
pub(super) fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    // Models are at loopback, and are reached without the proxy.
    let direct = "localhost,127.0.0.1,::1".to_owned();
    [
        ("HTTP_PROXY", proxy.clone()),
        ("http_proxy", proxy.clone()),
        ("HTTPS_PROXY", proxy.clone()),
        ("https_proxy", proxy.clone()),
        ("ALL_PROXY", proxy.clone()),
        ("all_proxy", proxy),
        ("NO_PROXY", direct.clone()),
        ("no_proxy", direct),
        ("NODE_USE_ENV_PROXY", "1".to_owned()),
        ("JAVA_TOOL_OPTIONS", JAVA_OPTIONS.to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (OsString::from(name), OsString::from(value)))
}
