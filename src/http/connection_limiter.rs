//! Limits on the open connections of a listener: how many there may be from where, and which one is evicted
//! when there is no room.
//!
//! An unauthenticated client can hold a connection without sending anything. So a connection has little
//! claim to its place until a request on it has shown valid credentials:
//!
//! ```text
//! open ──▶ head (incomplete, or idle) ──▶ unauthorized request ──▶ authorized request
//!              ▲                                   │                       │
//!              └───────────── answered ────────────┴───────────────────────┘
//! ```
//!
//! Where a new connection finds no room, the oldest one that waits for a head is evicted, first those on
//! which no request was ever authorized; then the oldest unauthorized request, or authorized request whose
//! body is still incomplete; then the oldest preemptible one (a reader of logs, which reconnects). Any other
//! authorized request is never evicted. So one account gets only a share of the connections.
//!
//! The sole client of a listener counts for no network, since others may share its network. An open stream of
//! [HTTP/2](super::http2) counts as a connection, besides the one that carries it.

use super::budget::Account;
use crate::{
    api::problem::{Problem, ProblemKind},
    network::client_network,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Connections of a network without a recently authorized request.
const UNKNOWN_NETWORK_LIMIT: usize = 32;
/// Time for which a network is remembered after its last authorized request.
const AUTHORIZED_NETWORK_TTL: Duration = Duration::from_hours(1);
/// Most networks that are remembered.
const MAX_AUTHORIZED_NETWORKS: usize = 10_000;
/// Age of an incomplete head before it is evicted for another connection of its own network. Within it a
/// burst of clients on one machine gets a 503, which is better than a reset; over TLS, whose clients do not understand a
/// 503 before the handshake, it gets the reset.
const HEAD_GRACE_PERIOD: Duration = Duration::from_secs(1);
/// Age of a request with an incomplete body before it is evicted for its own network or account.
const BODY_GRACE_PERIOD: Duration = Duration::from_secs(5);

/// Open connections of one listener; cheap to clone.
#[derive(Clone)]
pub(super) struct ConnectionLimiter {
    limit: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, OpenConnection>,
    from: HashMap<IpAddr, usize>,
    /// Time of the last authorized request of each network.
    authorized: HashMap<IpAddr, Instant>,
}

struct OpenConnection {
    /// Network that the connection counts for; `None` once its peer was the sole client of the listener.
    network: Option<IpAddr>,
    /// Whether the current request is limited elsewhere: the connection counts for no network until its answer ends.
    is_limited_elsewhere: bool,
    phase: Phase,
    /// Whether the body of the request is still incomplete.
    is_receiving: bool,
    /// Whether the request may be evicted for others: its client reconnects and resumes.
    is_preemptible: bool,
    /// Account whose credentials the current request has shown.
    account: Option<Account>,
    /// Start of the current phase.
    since: Instant,
    /// Whether a request on this connection was authorized, or its peer is a trusted proxy.
    is_known: bool,
    eviction: Arc<Notify>,
}

/// Phase of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Waits for the complete head of a request.
    Head,
    /// Receives or answers a request that has not shown valid credentials.
    Unauthorized,
    /// Receives or answers a request that has.
    Authorized,
}

impl OpenConnection {
    /// Eviction rank: the lowest goes first; `None` is never evicted.
    fn rank(&self) -> Option<u8> {
        match (self.phase, self.is_known) {
            (Phase::Head, false) => Some(0),
            (Phase::Head, true) => Some(1),
            (Phase::Unauthorized, _) => Some(2),
            (Phase::Authorized, _) if self.is_receiving => Some(2),
            (Phase::Authorized, _) => self.is_preemptible.then_some(3),
        }
    }

    /// Whether the peer has been silent for so long that others of its network or account come first.
    fn is_stale(&self, now: Instant) -> bool {
        let grace = match self.phase {
            Phase::Head => HEAD_GRACE_PERIOD,
            _ if self.is_receiving => BODY_GRACE_PERIOD,
            _ => return false,
        };
        now.saturating_duration_since(self.since) >= grace
    }
}

impl ConnectionLimiter {
    /// Limiter for `limit` connections in all.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            table: Arc::default(),
        }
    }

    /// Requests that one account may have in flight: fewer than a network may have connections, so that
    /// others behind the same address get through, and more than it may follow logs.
    fn request_limit(&self, account: Account) -> usize {
        match account {
            // The rest is for short calls, such as cancels.
            Account::SoleClient => (self.limit - self.limit / 8).max(1),
            Account::Authenticated(_) | Account::Anonymous(_) => (self.limit * 3 / 16).max(1),
        }
    }

    /// Permit for a connection from `peer`; `None` where too many are open. A trusted proxy may have all.
    pub(super) fn acquire(
        &self,
        peer: IpAddr,
        is_trusted: bool,
        now: Instant,
    ) -> Option<ConnectionPermit> {
        self.acquire_beside(None, peer, is_trusted, now)
    }

    /// Same, for a stream on this connection, which is not evicted for it: that would end the stream as well.
    pub(super) fn acquire_beside(
        &self,
        connection: Option<&ConnectionPermit>,
        peer: IpAddr,
        is_trusted: bool,
        now: Instant,
    ) -> Option<ConnectionPermit> {
        let is_other = |entry: &OpenConnection| {
            connection.is_none_or(|own| !Arc::ptr_eq(&own.eviction, &entry.eviction))
        };
        let network = client_network(peer);
        let mut table = self.table.lock();
        let quarter = self.limit.div_ceil(4);
        let share = match is_trusted {
            true => self.limit,
            false if table.is_authorized(network, now) => quarter,
            false => quarter.min(UNKNOWN_NETWORK_LIMIT),
        };
        if table.from.get(&network).copied().unwrap_or(0) >= share {
            table.evict(|entry| {
                entry.network == Some(network) && entry.is_stale(now) && is_other(entry)
            })?;
        } else if table.open.len() >= self.limit {
            table.evict(is_other)?;
        }
        let (id, eviction) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        *table.from.entry(network).or_default() += 1;
        let entry = OpenConnection {
            network: Some(network),
            is_limited_elsewhere: false,
            phase: Phase::Head,
            is_receiving: false,
            is_preemptible: false,
            account: None,
            since: now,
            is_known: is_trusted,
            eviction: Arc::clone(&eviction),
        };
        table.open.insert(id, entry);
        Some(ConnectionPermit {
            id,
            network,
            eviction,
            connection: None,
            limiter: self.clone(),
        })
    }
}

impl Table {
    fn is_authorized(&self, network: IpAddr, now: Instant) -> bool {
        let last = self.authorized.get(&network);
        last.is_some_and(|last| now.saturating_duration_since(*last) < AUTHORIZED_NETWORK_TTL)
    }

    fn remember(&mut self, network: IpAddr, now: Instant) {
        if self.authorized.len() >= MAX_AUTHORIZED_NETWORKS
            && !self.authorized.contains_key(&network)
        {
            self.authorized
                .retain(|_, last| now.saturating_duration_since(*last) < AUTHORIZED_NETWORK_TTL);
            let oldest = self.authorized.iter().min_by_key(|(_, last)| **last);
            if let Some(oldest) = oldest.map(|(network, _)| *network)
                && self.authorized.len() >= MAX_AUTHORIZED_NETWORKS
            {
                self.authorized.remove(&oldest);
            }
        }
        self.authorized.insert(network, now);
    }

    /// Closes the connection of the lowest rank among those that `may_go` allows; `None` where there is none.
    fn evict(&mut self, may_go: impl Fn(&OpenConnection) -> bool) -> Option<()> {
        let candidates = self.open.iter().filter(|(_, entry)| may_go(entry));
        let ranked = candidates.filter_map(|(id, entry)| Some((entry.rank()?, entry.since, *id)));
        let (_, _, id) = ranked.min()?;
        self.remove(id)
            .inspect(|entry| entry.eviction.notify_one())?;
        Some(())
    }

    fn remove(&mut self, id: u64) -> Option<OpenConnection> {
        self.leave_network(id);
        self.open.remove(&id)
    }

    /// Has a connection count for its network again, after a request that was limited elsewhere.
    fn rejoin_network(&mut self, id: u64, network: IpAddr) {
        if let Some(entry) = self.open.get_mut(&id)
            && std::mem::take(&mut entry.is_limited_elsewhere)
        {
            entry.network = Some(network);
            *self.from.entry(network).or_default() += 1;
        }
    }

    /// Has a connection count for no network any more.
    fn leave_network(&mut self, id: u64) {
        let Some(network) = self
            .open
            .get_mut(&id)
            .and_then(|entry| entry.network.take())
        else {
            return;
        };
        if let Some(count) = self.from.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.from.remove(&network);
            }
        }
    }
}

/// Permit for one open connection; returned when dropped.
pub(super) struct ConnectionPermit {
    id: u64,
    network: IpAddr,
    eviction: Arc<Notify>,
    /// Connection of which this is a stream.
    connection: Option<Arc<ConnectionPermit>>,
    limiter: ConnectionLimiter,
}

impl ConnectionPermit {
    /// Same permit, for a stream of HTTP/2 on this connection. Its credentials count for the connection, too, and its
    /// eviction ends the connection: nothing else ends a stream that the peer does not read.
    pub(super) fn of_stream(mut self, connection: &Arc<Self>) -> Self {
        self.eviction = Arc::clone(&connection.eviction);
        if let Some(entry) = self.limiter.table.lock().open.get_mut(&self.id) {
            entry.eviction = Arc::clone(&connection.eviction);
        }
        self.connection = Some(Arc::clone(connection));
        self
    }

    /// Marks the arrival of a request's head, with or without a body to come. Dropping the returned guard marks
    /// the request as answered.
    pub(super) fn begin_request(self: &Arc<Self>, has_body: bool) -> InFlightRequest {
        self.enter(Phase::Unauthorized, has_body, Instant::now());
        InFlightRequest(Arc::clone(self))
    }

    /// Marks the current request as completely received.
    pub(super) fn mark_received(&self) {
        if let Some(entry) = self.limiter.table.lock().open.get_mut(&self.id) {
            entry.is_receiving = false;
        }
    }

    /// Marks the current request as authorized.
    pub(super) fn authorize(&self) {
        self.authorize_at(Instant::now());
    }

    /// Same, for an account. Fails with 503 where the account has too many requests in flight.
    pub(super) fn authorize_account(&self, account: Account) -> Result<(), Problem> {
        self.authorize_account_at(account, Instant::now())
    }

    fn authorize_account_at(&self, account: Account, now: Instant) -> Result<(), Problem> {
        self.authorize_at(now);
        let mut table = self.limiter.table.lock();
        let is_own = |entry: &OpenConnection| entry.account == Some(account);
        if table.open.get(&self.id).is_some_and(is_own) {
            return Ok(());
        }
        let own = table.open.values().filter(|entry| is_own(entry)).count();
        if own >= self.limiter.request_limit(account) {
            let gone = table.evict(|entry| {
                let is_beside = Arc::ptr_eq(&self.eviction, &entry.eviction);
                is_own(entry) && !is_beside && (entry.is_stale(now) || entry.is_preemptible)
            });
            gone.ok_or_else(|| {
                let text = "too many of your requests are in flight; send this one again when some are answered, and fewer at a time";
                Problem::new(ProblemKind::Unavailable, text).retry_after(1)
            })?;
        }
        if let Some(entry) = table.open.get_mut(&self.id) {
            entry.account = Some(account);
        }
        if account == Account::SoleClient {
            table.leave_network(self.id);
        }
        Ok(())
    }

    /// Marks the current request as a short call of the listener's sole client, which no limit holds up.
    pub(super) fn authorize_sole_client(&self) {
        self.authorize();
        self.limiter.table.lock().leave_network(self.id);
    }

    /// Marks the current request as one of a kind that is limited elsewhere: it counts for no account and no network.
    pub(super) fn mark_limited_elsewhere(&self) {
        let mut table = self.limiter.table.lock();
        if let Some(entry) = table.open.get_mut(&self.id) {
            entry.account = None;
            entry.is_limited_elsewhere = entry.network.is_some();
        }
        table.leave_network(self.id);
    }

    /// Marks the current request as preemptible: it may be evicted for any other.
    pub(super) fn mark_preemptible(&self) {
        if let Some(entry) = self.limiter.table.lock().open.get_mut(&self.id) {
            entry.is_preemptible = true;
        }
    }

    fn authorize_at(&self, now: Instant) {
        if let Some(connection) = &self.connection {
            connection.authorize_at(now);
        }
        let mut table = self.limiter.table.lock();
        table.remember(self.network, now);
        if let Some(entry) = table.open.get_mut(&self.id) {
            (entry.phase, entry.since, entry.is_known) = (Phase::Authorized, now, true);
        }
    }

    fn enter(&self, phase: Phase, is_receiving: bool, now: Instant) {
        let mut table = self.limiter.table.lock();
        table.rejoin_network(self.id, self.network);
        if let Some(entry) = table.open.get_mut(&self.id) {
            (entry.phase, entry.since) = (phase, now);
            (entry.is_receiving, entry.is_preemptible, entry.account) = (is_receiving, false, None);
        }
    }

    /// Waits until the connection is evicted for another one.
    pub(super) async fn evicted(&self) {
        self.eviction.notified().await;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.limiter.table.lock().remove(self.id);
    }
}

/// Guard of a request from its head to the end of its answer.
pub(super) struct InFlightRequest(Arc<ConnectionPermit>);

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.0.enter(Phase::Head, false, Instant::now());
    }
}

#[cfg(test)]
mod tests;
