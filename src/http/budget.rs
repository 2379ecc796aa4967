//! Memory for request bodies, shared by all listeners of the process.
//!
//! A body reserves memory as it arrives and returns it when its request is done. Bodies of unauthenticated
//! clients have pools of their own, for large and for small ones, so that they can't crowd out users, nor
//! registrations logins. One account gets at most a quarter of a pool, so that no user crowds out the others.
//! An unauthenticated client can also send slowly, or all but the last byte: where a pool is used up, its
//! oldest incomplete body is evicted for the newer one. Bodies of calls of models have a pool of their own, too:
//! they are kept until a node answers, for minutes, and must not crowd out tasks and reports of nodes.

use crate::{
    api::problem::{Problem, ProblemKind},
    network::client_network,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, LazyLock},
};
use tokio::sync::Notify;
use uuid::Uuid;

/// Pool for bodies of authorized requests, in bytes.
const AUTHENTICATED_POOL_BYTES: usize = 56 * 1024 * 1024;
/// Pool for bodies of authorized calls of models, in bytes.
const MODELS_POOL_BYTES: usize = 64 * 1024 * 1024;
/// Pool for large bodies of unauthenticated clients, such as registrations, in bytes.
const ANONYMOUS_LARGE_POOL_BYTES: usize = 4 * 1024 * 1024;
/// Pool for small bodies of unauthenticated clients, such as logins, in bytes.
const ANONYMOUS_SMALL_POOL_BYTES: usize = 4 * 1024 * 1024;
/// Largest body limit of a call whose bodies count as small, in bytes.
const SMALL_BODY_BYTES: usize = 16 * 1024;

static BUDGET: LazyLock<Budget> = LazyLock::new(Budget::default);

/// Account that a request body is charged to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Account {
    /// Unauthenticated clients of one network.
    Anonymous(IpAddr),
    /// User or node, by its id.
    Authenticated(Uuid),
    /// The sole client of a listener, which may use the whole budget.
    SoleClient,
}

/// Pool of memory with a limit of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Pool {
    Authenticated,
    Models,
    AnonymousLarge,
    AnonymousSmall,
}

impl Account {
    /// Account of an unauthenticated client at `address`.
    pub(super) fn anonymous(address: IpAddr) -> Self {
        Self::Anonymous(client_network(address))
    }

    /// Pool for a body of at most `limit` bytes.
    fn pool(self, limit: usize) -> Pool {
        match self {
            Self::Anonymous(_) if limit <= SMALL_BODY_BYTES => Pool::AnonymousSmall,
            Self::Anonymous(_) => Pool::AnonymousLarge,
            Self::Authenticated(_) | Self::SoleClient => Pool::Authenticated,
        }
    }
}

impl Pool {
    fn bytes(self) -> usize {
        match self {
            Self::Authenticated => AUTHENTICATED_POOL_BYTES,
            Self::Models => MODELS_POOL_BYTES,
            Self::AnonymousLarge => ANONYMOUS_LARGE_POOL_BYTES,
            Self::AnonymousSmall => ANONYMOUS_SMALL_POOL_BYTES,
        }
    }

    /// Whether its bodies are those of authorized requests, which are never evicted.
    fn is_authorized(self) -> bool {
        matches!(self, Self::Authenticated | Self::Models)
    }
}

/// Account together with the pool that it draws on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct PoolAccount {
    account: Account,
    pool: Pool,
}

impl PoolAccount {
    /// Most bytes for this account alone.
    fn limit_bytes(self) -> usize {
        match self.account {
            Account::SoleClient => self.pool.bytes(),
            Account::Anonymous(_) | Account::Authenticated(_) => self.pool.bytes() / 4,
        }
    }
}

#[derive(Default)]
struct Budget(Mutex<Usage>);

#[derive(Default)]
struct Usage {
    next: u64,
    pools: HashMap<Pool, usize>,
    accounts: HashMap<PoolAccount, usize>,
    /// Bodies by age, oldest first.
    bodies: BTreeMap<u64, Body>,
}

struct Body {
    owner: PoolAccount,
    bytes: usize,
    /// Notifies the receiver of an eviction; `None` for bodies that can't be evicted: those of authorized
    /// requests, and those that are complete.
    eviction: Option<Arc<Notify>>,
}

impl Usage {
    /// Shortage that keeps `bytes` more from fitting, if any.
    fn shortage(&self, owner: PoolAccount, bytes: usize) -> Option<Shortage> {
        let own = self.accounts.get(&owner).copied().unwrap_or(0);
        let all = self.pools.get(&owner.pool).copied().unwrap_or(0);
        if own + bytes > owner.limit_bytes() {
            return Some(Shortage::Own);
        }
        (all + bytes > owner.pool.bytes()).then_some(Shortage::All)
    }

    /// Reserves `bytes` more for a body, for which older ones may be evicted.
    fn reserve(&mut self, id: u64, bytes: usize) -> Result<(), Problem> {
        let Some(owner) = self.bodies.get(&id).map(|body| body.owner) else {
            return Err(evicted());
        };
        while let Some(shortage) = self.shortage(owner, bytes) {
            let oldest = self.oldest_unfinished(owner, shortage);
            // Only this body itself could still be evicted.
            let oldest = oldest.filter(|oldest| *oldest != id);
            let oldest = oldest.ok_or_else(|| shortage.problem(owner.pool))?;
            self.remove(oldest);
        }
        *self.pools.entry(owner.pool).or_default() += bytes;
        *self.accounts.entry(owner).or_default() += bytes;
        if let Some(body) = self.bodies.get_mut(&id) {
            body.bytes += bytes;
        }
        Ok(())
    }

    /// Oldest body that can be evicted and whose memory helps this account.
    fn oldest_unfinished(&self, owner: PoolAccount, shortage: Shortage) -> Option<u64> {
        let found = self.bodies.iter().find(|(_, body)| {
            let is_of_use = match shortage {
                Shortage::Own => body.owner == owner,
                Shortage::All => body.owner.pool == owner.pool,
            };
            is_of_use && body.bytes > 0 && body.eviction.is_some()
        });
        found.map(|(id, _)| *id)
    }

    /// Removes a body and returns its memory.
    fn remove(&mut self, id: u64) {
        let Some(body) = self.bodies.remove(&id) else {
            return;
        };
        if let Some(all) = self.pools.get_mut(&body.owner.pool) {
            *all -= body.bytes;
        }
        if let Some(own) = self.accounts.get_mut(&body.owner) {
            *own -= body.bytes;
            if *own == 0 {
                self.accounts.remove(&body.owner);
            }
        }
        if let Some(eviction) = body.eviction {
            eviction.notify_one();
        }
    }
}

/// Limit that is reached: the account's own, or the pool's.
#[derive(Clone, Copy)]
enum Shortage {
    Own,
    All,
}

impl Shortage {
    fn problem(self, pool: Pool) -> Problem {
        let text = match (self, pool) {
            (Self::Own, Pool::Models) => {
                "your calls of models that wait for an answer hold too much memory; send fewer at a time, and this one again"
            }
            (Self::All, Pool::Models) => {
                "calls of models that wait for an answer hold too much memory; send this one again in a moment"
            }
            (Self::Own, _) => {
                "too many of your request bodies are being received; send fewer at a time, and this one again"
            }
            (Self::All, _) => {
                "too many request bodies are being received; send this one again in a moment"
            }
        };
        Problem::new(ProblemKind::Unavailable, text).retry_after(1)
    }
}

/// Problem of a body that was evicted for a newer one.
fn evicted() -> Problem {
    Shortage::All.problem(Pool::AnonymousLarge)
}

/// Memory reserved for one body; returned when dropped.
pub struct BodyReservation {
    budget: &'static Budget,
    id: u64,
    eviction: Arc<Notify>,
}

impl BodyReservation {
    /// Empty reservation for a body of at most `limit` bytes. Fails with 503 where the `announced` bytes of an
    /// authorized request don't fit now; of unauthenticated clients only bytes that arrived count.
    pub(crate) fn open(account: Account, limit: usize, announced: usize) -> Result<Self, Problem> {
        Self::open_in(&BUDGET, (account, account.pool(limit)), announced)
    }

    /// Reservation of the `announced` bytes of an authorized call of a model. Fails with 503 where they don't fit now.
    pub(super) fn open_for_models(account: Account, announced: usize) -> Result<Self, Problem> {
        let mut reservation = Self::open_in(&BUDGET, (account, Pool::Models), announced)?;
        reservation.reserve(announced)?;
        Ok(reservation)
    }

    fn open_in(
        budget: &'static Budget,
        (account, pool): (Account, Pool),
        announced: usize,
    ) -> Result<Self, Problem> {
        let owner = PoolAccount { account, pool };
        let eviction = Arc::<Notify>::default();
        let mut usage = budget.0.lock();
        let is_authorized = pool.is_authorized();
        if let Some(shortage) = usage.shortage(owner, announced).filter(|_| is_authorized) {
            return Err(shortage.problem(pool));
        }
        let id = usage.next;
        usage.next += 1;
        let body = Body {
            owner,
            bytes: 0,
            eviction: (!is_authorized).then(|| Arc::clone(&eviction)),
        };
        usage.bodies.insert(id, body);
        Ok(Self {
            budget,
            id,
            eviction,
        })
    }

    /// Reserves `bytes` more. Fails with 503 where they don't fit, or the body was evicted.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), Problem> {
        self.budget.0.lock().reserve(self.id, bytes)
    }

    /// Waits until the body is evicted for a newer one; yields the problem for its sender.
    pub(super) fn evicted(&self) -> impl Future<Output = Problem> + use<> {
        let eviction = Arc::clone(&self.eviction);
        async move {
            eviction.notified().await;
            evicted()
        }
    }

    /// Marks the body as complete, so that it can't be evicted any more.
    pub(super) fn mark_complete(&mut self) -> Result<(), Problem> {
        let mut usage = self.budget.0.lock();
        let body = usage.bodies.get_mut(&self.id);
        body.ok_or_else(evicted)?.eviction = None;
        Ok(())
    }
}

impl Drop for BodyReservation {
    fn drop(&mut self) {
        self.budget.0.lock().remove(self.id);
    }
}

#[cfg(test)]
mod tests;
