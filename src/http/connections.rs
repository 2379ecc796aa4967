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
//! its body. Any other authorized request is never given up. So one account gets a part of the connections.

use super::budget::Account;
use crate::{
    api::problem::{Kind, Problem},
    network::network,
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Connections of a network of which no request was authorized lately.
const UNKNOWN_SHARE: usize = 32;
/// How long a network is remembered after its last authorized request.
const MEMORY: Duration = Duration::from_hours(1);
/// Networks that are remembered at most.
const NETWORKS: usize = 10_000;
/// Age of a head before it makes room for another connection of its own network. A burst of clients on one
/// machine is told to wait instead, which is better than a reset.
const HEAD_GRACE: Duration = Duration::from_secs(1);
/// Age of a request whose body is still to come before it does the same, also for its own account.
const BODY_GRACE: Duration = Duration::from_secs(5);

/// Open connections of one listener; cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    limit: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Entry>,
    from: HashMap<IpAddr, usize>,
    /// When a request from there was last authorized.
    authorized: HashMap<IpAddr, Instant>,
}

struct Entry {
    network: IpAddr,
    phase: Phase,
    /// Whether some of the request's body is still to come.
    is_receiving: bool,
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
    Stranger,
    /// A request that has shown them.
    Authorized,
}

impl Entry {
    /// Order in which connections are given up; `None` for those that are not.
    fn rank(&self) -> Option<u8> {
        match (self.phase, self.is_known) {
            (Phase::Head, false) => Some(0),
            (Phase::Head, true) => Some(1),
            (Phase::Stranger, _) => Some(2),
            (Phase::Authorized, _) => self.is_receiving.then_some(2),
        }
    }

    /// Whether it has waited so long for its peer that it makes room for others of the same origin.
    fn is_stale(&self, now: Instant) -> bool {
        let grace = match self.phase {
            Phase::Head => HEAD_GRACE,
            _ if self.is_receiving => BODY_GRACE,
            _ => return false,
        };
        now.saturating_duration_since(self.since) >= grace
    }
}

impl Connections {
    /// Room for so many.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            table: Arc::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that one account may have under way: fewer than a network may have connections, so that
    /// others behind the same address get through, and more than it may follow logs.
    fn share_of(&self, account: Account) -> usize {
        match account {
            Account::Sole => self.limit,
            Account::Known(_) | Account::Stranger(_) => (self.limit * 3 / 16).max(1),
        }
    }

    /// Place for a connection from `peer`; none where there are too many. A trusted proxy may have all.
    pub(super) fn admit(&self, peer: IpAddr, is_trusted: bool, now: Instant) -> Option<Place> {
        let network = network(peer);
        let mut table = self.table();
        let quarter = self.limit.div_ceil(4);
        let share = match is_trusted {
            true => self.limit,
            false if table.is_authorized(network, now) => quarter,
            false => quarter.min(UNKNOWN_SHARE),
        };
        if table.from.get(&network).copied().unwrap_or(0) >= share {
            table.give_up(|entry| entry.network == network && entry.is_stale(now))?;
        } else if table.open.len() >= self.limit {
            table.give_up(|_| true)?;
        }
        let (id, closing) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        *table.from.entry(network).or_default() += 1;
        let entry = Entry {
            network,
            phase: Phase::Head,
            is_receiving: false,
            account: None,
            since: now,
            is_known: is_trusted,
            closing: Arc::clone(&closing),
        };
        table.open.insert(id, entry);
        Some(Place {
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
        last.is_some_and(|last| now.saturating_duration_since(*last) < MEMORY)
    }

    fn remember(&mut self, network: IpAddr, now: Instant) {
        if self.authorized.len() >= NETWORKS && !self.authorized.contains_key(&network) {
            self.authorized
                .retain(|_, last| now.saturating_duration_since(*last) < MEMORY);
            let oldest = self.authorized.iter().min_by_key(|(_, last)| **last);
            if let Some(oldest) = oldest.map(|(network, _)| *network)
                && self.authorized.len() >= NETWORKS
            {
                self.authorized.remove(&oldest);
            }
        }
        self.authorized.insert(network, now);
    }

    /// Closes the connection that is worth least among these; `None` where there is none.
    fn give_up(&mut self, may_go: impl Fn(&Entry) -> bool) -> Option<()> {
        let candidates = self.open.iter().filter(|(_, entry)| may_go(entry));
        let ranked = candidates.filter_map(|(id, entry)| Some((entry.rank()?, entry.since, *id)));
        let (_, _, id) = ranked.min()?;
        self.remove(id)
            .inspect(|entry| entry.closing.notify_one())?;
        Some(())
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.open.remove(&id)?;
        if let Some(count) = self.from.get_mut(&entry.network) {
            *count -= 1;
            if *count == 0 {
                self.from.remove(&entry.network);
            }
        }
        Some(entry)
    }
}

/// Place of one connection, free again when dropped.
pub(super) struct Place {
    id: u64,
    network: IpAddr,
    closing: Arc<Notify>,
    connections: Connections,
}

impl Place {
    /// Notes that the head of a request is there, and whether a body is to come, and, once the value is dropped,
    /// that it was answered.
    pub(super) fn begin(self: &Arc<Self>, has_body: bool) -> Exchange {
        self.enter(Phase::Stranger, has_body, Instant::now());
        Exchange(Arc::clone(self))
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
    pub(super) fn authorize_as(&self, account: Account) -> Result<(), Problem> {
        self.take_turn(account, Instant::now())
    }

    fn take_turn(&self, account: Account, now: Instant) -> Result<(), Problem> {
        self.authorize_at(now);
        let mut table = self.connections.table();
        let is_own = |entry: &Entry| entry.account == Some(account);
        if table.open.get(&self.id).is_some_and(is_own) {
            return Ok(());
        }
        let own = table.open.values().filter(|entry| is_own(entry)).count();
        if own >= self.connections.share_of(account) {
            let gone = table.give_up(|entry| is_own(entry) && entry.is_stale(now));
            gone.ok_or_else(|| {
                let text = "too many requests of yours are under way; send this one again when some are answered, and fewer at a time";
                Problem::new(Kind::Unavailable, text).retry_after(1)
            })?;
        }
        if let Some(entry) = table.open.get_mut(&self.id) {
            entry.account = Some(account);
        }
        Ok(())
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
            (entry.is_receiving, entry.account) = (is_receiving, None);
        }
    }

    /// Waits until the connection is given up for another one.
    pub(super) async fn given_up(&self) {
        self.closing.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.table().remove(self.id);
    }
}

/// A request and its answer, on their way over a connection.
pub(super) struct Exchange(Arc<Place>);

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.enter(Phase::Head, false, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_given_up(place: &Place) -> bool {
        place.given_up().now_or_never().is_some()
    }

    #[test]
    fn unknown_network_gets_few_places_until_authorized() {
        let (connections, now) = (Connections::new(1024), Instant::now());
        let [known, other] = ["192.0.2.1", "192.0.2.2"].map(ip);
        let admit = |peer| connections.admit(peer, false, now).map(Arc::new);
        let mut places: Vec<_> = (0..UNKNOWN_SHARE).map(|_| admit(known).unwrap()).collect();
        assert!(admit(known).is_none());
        assert!(admit(other).is_some());
        places[0].authorize();
        places.extend((UNKNOWN_SHARE..256).map(|_| admit(known).unwrap()));
        assert!(admit(known).is_none(), "a quarter is the most");
        places.clear();
        assert!(connections.table().from.is_empty());
        places.extend((0..256).map(|_| admit(known).unwrap()));
        let later = now + MEMORY + HEAD_GRACE;
        places.clear();
        places.extend(
            (0..UNKNOWN_SHARE).map(|_| Arc::new(connections.admit(known, false, later).unwrap())),
        );
        assert!(
            connections.admit(known, false, later).is_none(),
            "it is forgotten in time"
        );
    }

    #[test]
    fn proxies_may_have_all_places() {
        let (connections, now) = (Connections::new(64), Instant::now());
        let proxy = ip("10.0.0.1");
        let places: Vec<_> = (0..64)
            .map(|_| Arc::new(connections.admit(proxy, true, now).unwrap()))
            .collect();
        let _exchanges: Vec<_> = places.iter().map(|place| place.begin(false)).collect();
        places.iter().for_each(|place| place.authorize());
        assert!(connections.admit(ip("192.0.2.1"), false, now).is_none());
    }

    #[test]
    fn least_valuable_connection_makes_room() {
        let (connections, now) = (Connections::new(5), Instant::now());
        let admit = |last: u8| {
            let peer = IpAddr::from([192, 0, 2, last]);
            Arc::new(connections.admit(peer, false, now).unwrap())
        };
        let [authorized, stranger, idle, head, newer] = [1, 2, 3, 4, 5].map(admit);
        let _running = authorized.begin(false);
        authorized.authorize();
        let _asking = stranger.begin(false);
        let exchange = idle.begin(false);
        idle.authorize();
        drop(exchange);
        let mut newcomers = Vec::new();
        for (n, next) in [&head, &newer].into_iter().enumerate() {
            assert!(!is_given_up(next));
            newcomers.push(admit(6 + n as u8));
            newcomers[n].begin(false);
            newcomers[n].authorize();
            assert!(is_given_up(next), "{n}");
        }
        newcomers.push(admit(8));
        let _busy: Vec<_> = newcomers.iter().map(|place| place.begin(false)).collect();
        newcomers.iter().for_each(|place| place.authorize());
        assert!(is_given_up(&idle), "then one that is only idle");
        let last = admit(9);
        assert!(is_given_up(&stranger), "then one that asks");
        let _exchange = last.begin(false);
        last.authorize();
        assert!(connections.admit(ip("192.0.2.10"), false, now).is_none());
        assert!(!is_given_up(&authorized));
    }

    #[test]
    fn network_makes_room_with_its_own_old_heads() {
        let (connections, now) = (Connections::new(1024), Instant::now());
        let peer = ip("127.0.0.1");
        let places: Vec<_> = (0..UNKNOWN_SHARE)
            .map(|_| connections.admit(peer, false, now).unwrap())
            .collect();
        assert!(
            connections.admit(peer, false, now).is_none(),
            "a burst has to wait"
        );
        let other = connections.admit(ip("127.0.0.2"), false, now).unwrap();
        let _newcomer = connections.admit(peer, false, now + HEAD_GRACE).unwrap();
        let given_up = places.iter().filter(|place| is_given_up(place)).count();
        assert_eq!((given_up, is_given_up(&other)), (1, false));
    }

    #[test]
    fn one_account_leaves_places_at_its_own_address() {
        let (connections, now) = (Connections::new(1024), Instant::now());
        let [ann, bob] = [(); 2].map(|()| Account::Known(uuid::Uuid::now_v7()));
        let ask = |account, now| {
            let place = connections.admit(ip("127.0.0.1"), false, now).map(Arc::new);
            let place = place.unwrap();
            let exchange = place.begin(true);
            let turn = place.take_turn(account, now);
            turn.map(|()| (place, exchange))
                .map_err(|problem| problem.kind)
        };
        let mut hers: Vec<_> = (0..192).map(|_| ask(ann, now).unwrap()).collect();
        assert_eq!(ask(ann, now).err(), Some(Kind::Unavailable));
        let _his = ask(bob, now).unwrap();
        for (place, _) in &hers[1..] {
            place.receive();
        }
        let later = now + BODY_GRACE;
        let _newer = ask(ann, later).unwrap();
        assert!(
            is_given_up(&hers[0].0),
            "a body that does not come makes room"
        );
        assert!(
            ask(ann, later).is_err(),
            "what is asked for in full is answered"
        );
        drop(hers.pop());
        ask(ann, later).unwrap();
    }

    #[test]
    fn unfinished_body_makes_room_whoever_sends_it() {
        let (connections, now) = (Connections::new(2), Instant::now());
        let admit = |last: u8| {
            let peer = IpAddr::from([192, 0, 2, last]);
            connections.admit(peer, false, now).map(Arc::new)
        };
        let [first, second] = [1, 2].map(|last| admit(last).unwrap());
        let _exchanges = [&first, &second].map(|place| place.begin(true));
        [&first, &second].map(|place| place.authorize());
        first.receive();
        let _newcomer = admit(3).unwrap();
        assert!(is_given_up(&second) && !is_given_up(&first));
    }

    proptest! {
        #[test]
        fn table_never_exceeds_its_limits(limit in 1_usize..40, steps in prop::collection::vec((0_u8..6, 0_u8..4), 1..200)) {
            let (connections, mut now) = (Connections::new(limit), Instant::now());
            let mut places: Vec<Arc<Place>> = Vec::new();
            for (peer, what) in steps {
                now += Duration::from_millis(300);
                match what {
                    0 | 1 => places.extend(connections.admit(IpAddr::from([192, 0, 2, peer]), false, now).map(Arc::new)),
                    2 => places.first().into_iter().for_each(|place| place.authorize()),
                    _ => drop((!places.is_empty()).then(|| places.remove(usize::from(peer) % places.len()))),
                }
                let table = connections.table();
                prop_assert!(table.open.len() <= limit);
                prop_assert_eq!(table.from.values().sum::<usize>(), table.open.len());
                prop_assert!(table.from.values().all(|count| *count <= limit.div_ceil(4)));
            }
            places.clear();
            prop_assert!(connections.table().open.is_empty());
        }
    }
}
