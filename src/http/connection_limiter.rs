//! Open connections of a listener: how many there may be from where, and which one goes when there is no room.
//!
//! A stranger can hold a connection without asking for anything. So a connection counts for little until a
//! request on it has shown good credentials:
//!
//! ```text
//! open ──▶ head (unfinished, or idle) ──▶ request of a stranger ──▶ authorized request
//!              ▲                                   │                         │
//!              └───────────── answered ────────────┴─────────────────────────┘
//! ```
//!
//! Where a newcomer finds no room, the oldest connection that waits for a head goes, first those that never
//! were authorized; then the oldest request of a stranger, or of whoever has credentials and not sent all of
//! its body; then the oldest that only reads along. Any other authorized request is never given up. So one
//! account gets a part of the connections.
//!
//! The sole caller of a listener counts for no network: its network may be a stranger's, too.

use super::budget::Account;
use crate::{
    api::problem::{Problem, ProblemKind},
    network::client_network,
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// ConnectionLimiter of a network of which no request was authorized lately.
const UNKNOWN_NETWORK_LIMIT: usize = 32;
/// How long a network is remembered after its last authorized request.
const AUTHORIZED_NETWORK_TTL: Duration = Duration::from_hours(1);
/// Networks that are remembered at most.
const MAX_AUTHORIZED_NETWORKS: usize = 10_000;
/// Age of a head before it makes room for another connection of its own network. A burst of clients on one
/// machine is told to wait instead, which is better than a reset.
const HEAD_GRACE_PERIOD: Duration = Duration::from_secs(1);
/// Age of a request whose body is still to come before it does the same, also for its own account.
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
    /// When a request from there was last authorized.
    authorized: HashMap<IpAddr, Instant>,
}

struct OpenConnection {
    /// What its connection counts for; none once its peer was the sole caller of the listener.
    network: Option<IpAddr>,
    phase: Phase,
    /// Whether some of the request's body is still to come.
    is_receiving: bool,
    /// Whether it only reads along, and can do so on another connection.
    is_preemptible: bool,
    /// Who has shown good credentials with the present request.
    account: Option<Account>,
    /// Start of the phase.
    since: Instant,
    /// Whether a request on it was authorized, or its peer is a trusted proxy.
    is_known: bool,
    closing: Arc<Notify>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No whole head of a request is there.
    Head,
    /// A request that has not shown good credentials is being received or answered.
    Unauthorized,
    /// A request that has shown them.
    Authorized,
}

impl OpenConnection {
    /// Order in which connections are given up; `None` for those that are not.
    fn rank(&self) -> Option<u8> {
        match (self.phase, self.is_known) {
            (Phase::Head, false) => Some(0),
            (Phase::Head, true) => Some(1),
            (Phase::Unauthorized, _) => Some(2),
            (Phase::Authorized, _) if self.is_receiving => Some(2),
            (Phase::Authorized, _) => self.is_preemptible.then_some(3),
        }
    }

    /// Whether it has waited so long for its peer that it makes room for others of the same origin.
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
    /// Room for so many.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            table: Arc::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// RequestMetrics that one account may have under way: fewer than a network may have connections, so that
    /// others behind the same address get through, and more than it may follow logs.
    fn request_limit(&self, account: Account) -> usize {
        match account {
            // What is left is for calls that take a moment, such as cancels.
            Account::SoleClient => (self.limit - self.limit / 8).max(1),
            Account::Authenticated(_) | Account::Anonymous(_) => (self.limit * 3 / 16).max(1),
        }
    }

    /// ConnectionPermit for a connection from `peer`; none where there are too many. A trusted proxy may have all.
    pub(super) fn acquire(
        &self,
        peer: IpAddr,
        is_trusted: bool,
        now: Instant,
    ) -> Option<ConnectionPermit> {
        let network = client_network(peer);
        let mut table = self.table();
        let quarter = self.limit.div_ceil(4);
        let share = match is_trusted {
            true => self.limit,
            false if table.is_authorized(network, now) => quarter,
            false => quarter.min(UNKNOWN_NETWORK_LIMIT),
        };
        if table.from.get(&network).copied().unwrap_or(0) >= share {
            table.evict(|entry| entry.network == Some(network) && entry.is_stale(now))?;
        } else if table.open.len() >= self.limit {
            table.evict(|_| true)?;
        }
        let (id, closing) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        *table.from.entry(network).or_default() += 1;
        let entry = OpenConnection {
            network: Some(network),
            phase: Phase::Head,
            is_receiving: false,
            is_preemptible: false,
            account: None,
            since: now,
            is_known: is_trusted,
            closing: Arc::clone(&closing),
        };
        table.open.insert(id, entry);
        Some(ConnectionPermit {
            id,
            network,
            closing,
            connections: self.clone(),
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

    /// Closes the connection that is worth least among these; `None` where there is none.
    fn evict(&mut self, may_go: impl Fn(&OpenConnection) -> bool) -> Option<()> {
        let candidates = self.open.iter().filter(|(_, entry)| may_go(entry));
        let ranked = candidates.filter_map(|(id, entry)| Some((entry.rank()?, entry.since, *id)));
        let (_, _, id) = ranked.min()?;
        self.remove(id)
            .inspect(|entry| entry.closing.notify_one())?;
        Some(())
    }

    fn remove(&mut self, id: u64) -> Option<OpenConnection> {
        self.leave_network(id);
        self.open.remove(&id)
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

/// ConnectionPermit of one connection, free again when dropped.
pub(super) struct ConnectionPermit {
    id: u64,
    network: IpAddr,
    closing: Arc<Notify>,
    connections: ConnectionLimiter,
}

impl ConnectionPermit {
    /// Notes that the head of a request is there, and whether a body is to come, and, once the value is dropped,
    /// that it was answered.
    pub(super) fn begin(self: &Arc<Self>, has_body: bool) -> InFlightRequest {
        self.enter(Phase::Unauthorized, has_body, Instant::now());
        InFlightRequest(Arc::clone(self))
    }

    /// Notes that all of the present request is there.
    pub(super) fn receive(&self) {
        if let Some(entry) = self.connections.table().open.get_mut(&self.id) {
            entry.is_receiving = false;
        }
    }

    /// Notes that the present request has shown good credentials.
    pub(super) fn authorize(&self) {
        self.authorize_at(Instant::now());
    }

    /// The same for credentials of this account; fails where it has too many requests under way.
    pub(super) fn authorize_account(&self, account: Account) -> Result<(), Problem> {
        self.authorize_account_at(account, Instant::now())
    }

    fn authorize_account_at(&self, account: Account, now: Instant) -> Result<(), Problem> {
        self.authorize_at(now);
        let mut table = self.connections.table();
        let is_own = |entry: &OpenConnection| entry.account == Some(account);
        if table.open.get(&self.id).is_some_and(is_own) {
            return Ok(());
        }
        let own = table.open.values().filter(|entry| is_own(entry)).count();
        if own >= self.connections.request_limit(account) {
            let gone =
                table.evict(|entry| is_own(entry) && (entry.is_stale(now) || entry.is_preemptible));
            gone.ok_or_else(|| {
                let text = "too many requests of yours are under way; send this one again when some are answered, and fewer at a time";
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

    /// Notes that the caller is the sole one of the listener, with a call that takes a moment.
    pub(super) fn authorize_sole_client(&self) {
        self.authorize();
        self.connections.table().leave_network(self.id);
    }

    /// Notes that the present request only reads along: it makes room for any other.
    pub(super) fn mark_preemptible(&self) {
        if let Some(entry) = self.connections.table().open.get_mut(&self.id) {
            entry.is_preemptible = true;
        }
    }

    fn authorize_at(&self, now: Instant) {
        let mut table = self.connections.table();
        table.remember(self.network, now);
        if let Some(entry) = table.open.get_mut(&self.id) {
            (entry.phase, entry.since, entry.is_known) = (Phase::Authorized, now, true);
        }
    }

    fn enter(&self, phase: Phase, is_receiving: bool, now: Instant) {
        if let Some(entry) = self.connections.table().open.get_mut(&self.id) {
            (entry.phase, entry.since) = (phase, now);
            (entry.is_receiving, entry.is_preemptible, entry.account) = (is_receiving, false, None);
        }
    }

    /// Waits until the connection is given up for another one.
    pub(super) async fn evicted(&self) {
        self.closing.notified().await;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.table().remove(self.id);
    }
}

/// A request and its answer, on their way over a connection.
pub(super) struct InFlightRequest(Arc<ConnectionPermit>);

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.0.enter(Phase::Head, false, Instant::now());
    }
}

#[cfg(test)]
mod tests;
