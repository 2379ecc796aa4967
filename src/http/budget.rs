//! Memory for request bodies, shared by all listeners of the process.
//!
//! A body takes from the budget as it comes and gives back when its request is done. Bodies of strangers have
//! parts of their own, long and short ones, so that they can't keep users out, and registrations no logins.
//! Nobody gets more than a quarter of a part, so that one user can't keep the others out. A stranger can also
//! send slowly, or all but the last byte: where a part is used up, the oldest body that is still to be
//! completed goes for the newer one.

use crate::{
    api::problem::{Problem, ProblemKind},
    network::client_network,
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, LazyLock},
};
use tokio::sync::Notify;
use uuid::Uuid;

/// Bodies of all requests that have shown good credentials, in bytes.
const AUTHENTICATED_POOL_BYTES: usize = 56 * 1024 * 1024;
/// Long bodies of all others, such as registrations.
const ANONYMOUS_LARGE_POOL_BYTES: usize = 4 * 1024 * 1024;
/// Short ones, such as logins.
const ANONYMOUS_SMALL_POOL_BYTES: usize = 4 * 1024 * 1024;
/// Longest body that a call may take for its body to count as a short one.
const SMALL_BODY_BYTES: usize = 16 * 1024;

static BUDGET: LazyLock<Budget> = LazyLock::new(Budget::default);

/// Whose body it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Account {
    /// Sender without credentials, by network.
    Anonymous(IpAddr),
    /// User or node.
    Authenticated(Uuid),
    /// The one caller of a listener, who may use all of the budget.
    SoleClient,
}

/// What has a limit in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Pool {
    Authenticated,
    AnonymousLarge,
    AnonymousSmall,
}

impl Account {
    /// Account of whoever sends from an address without credentials.
    pub(super) fn anonymous(address: IpAddr) -> Self {
        Self::Anonymous(client_network(address))
    }

    /// Pool that a body of at most `limit` bytes is taken from.
    fn part(self, limit: usize) -> Pool {
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
            Self::AnonymousLarge => ANONYMOUS_LARGE_POOL_BYTES,
            Self::AnonymousSmall => ANONYMOUS_SMALL_POOL_BYTES,
        }
    }
}

/// By whom and from what a body is paid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct PoolAccount {
    account: Account,
    part: Pool,
}

impl PoolAccount {
    /// Bytes of this one alone.
    fn own_bytes(self) -> usize {
        match self.account {
            Account::SoleClient => self.part.bytes(),
            Account::Anonymous(_) | Account::Authenticated(_) => self.part.bytes() / 4,
        }
    }
}

#[derive(Default)]
struct Budget(Mutex<Usage>);

#[derive(Default)]
struct Usage {
    next: u64,
    parts: HashMap<Pool, usize>,
    payers: HashMap<PoolAccount, usize>,
    /// Bodies, oldest first.
    bodies: BTreeMap<u64, Body>,
}

struct Body {
    payer: PoolAccount,
    bytes: usize,
    /// Tells a stranger's that it is given up; none for others, nor once it is there in full.
    closing: Option<Arc<Notify>>,
}

impl Usage {
    /// Why so many more bytes don't fit, if so.
    fn lack(&self, payer: PoolAccount, bytes: usize) -> Option<Shortage> {
        let own = self.payers.get(&payer).copied().unwrap_or(0);
        let all = self.parts.get(&payer.part).copied().unwrap_or(0);
        if own + bytes > payer.own_bytes() {
            return Some(Shortage::Own);
        }
        (all + bytes > payer.part.bytes()).then_some(Shortage::All)
    }

    /// Takes so many more bytes for a body, for which older ones may have to go.
    fn take(&mut self, id: u64, bytes: usize) -> Result<(), Problem> {
        let Some(payer) = self.bodies.get(&id).map(|body| body.payer) else {
            return Err(Shortage::All.problem());
        };
        while let Some(lack) = self.lack(payer, bytes) {
            let oldest = self.oldest_unfinished(payer, lack);
            // Nothing is left but to give up this one.
            let oldest = oldest.filter(|oldest| *oldest != id);
            let oldest = oldest.ok_or_else(|| lack.problem())?;
            self.remove(oldest);
        }
        *self.parts.entry(payer.part).or_default() += bytes;
        *self.payers.entry(payer).or_default() += bytes;
        if let Some(body) = self.bodies.get_mut(&id) {
            body.bytes += bytes;
        }
        Ok(())
    }

    /// Oldest body that can be given up, and whose memory would be of use to this payer.
    fn oldest_unfinished(&self, payer: PoolAccount, lack: Shortage) -> Option<u64> {
        let found = self.bodies.iter().find(|(_, body)| {
            let is_of_use = match lack {
                Shortage::Own => body.payer == payer,
                Shortage::All => body.payer.part == payer.part,
            };
            is_of_use && body.bytes > 0 && body.closing.is_some()
        });
        found.map(|(id, _)| *id)
    }

    /// Ends a body, which gives back what it has taken.
    fn remove(&mut self, id: u64) {
        let Some(body) = self.bodies.remove(&id) else {
            return;
        };
        if let Some(all) = self.parts.get_mut(&body.payer.part) {
            *all -= body.bytes;
        }
        if let Some(own) = self.payers.get_mut(&body.payer) {
            *own -= body.bytes;
            if *own == 0 {
                self.payers.remove(&body.payer);
            }
        }
        if let Some(closing) = body.closing {
            closing.notify_one();
        }
    }
}

/// Whose limit is reached.
#[derive(Clone, Copy)]
enum Shortage {
    Own,
    All,
}

impl Shortage {
    fn problem(self) -> Problem {
        let text = match self {
            Self::Own => {
                "too many request bodies of yours are being received; send fewer at a time, and this one again"
            }
            Self::All => {
                "too many request bodies are being received; wait a moment and send it again"
            }
        };
        Problem::new(ProblemKind::Unavailable, text).retry_after(1)
    }
}

impl Budget {
    fn taken(&self) -> MutexGuard<'_, Usage> {
        self.0.lock()
    }
}

/// Memory that one body has taken; given back when dropped.
pub(super) struct BodyReservation {
    budget: &'static Budget,
    id: u64,
    closing: Arc<Notify>,
}

impl BodyReservation {
    /// Nothing yet, for a body of at most `limit` bytes that is said to have so many; fails where those don't
    /// fit now. What strangers say doesn't count, only what they send.
    pub(super) fn open(account: Account, limit: usize, announced: usize) -> Result<Self, Problem> {
        Self::open_in(&BUDGET, account, limit, announced)
    }

    fn open_in(
        budget: &'static Budget,
        account: Account,
        limit: usize,
        announced: usize,
    ) -> Result<Self, Problem> {
        let part = account.part(limit);
        let payer = PoolAccount { account, part };
        let closing = Arc::<Notify>::default();
        let mut taken = budget.taken();
        let is_known = part == Pool::Authenticated;
        if let Some(lack) = taken.lack(payer, announced).filter(|_| is_known) {
            return Err(lack.problem());
        }
        let id = taken.next;
        taken.next += 1;
        let body = Body {
            payer,
            bytes: 0,
            closing: (!is_known).then(|| Arc::clone(&closing)),
        };
        taken.bodies.insert(id, body);
        Ok(Self {
            budget,
            id,
            closing,
        })
    }

    /// Takes more.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        self.budget.taken().take(self.id, bytes)
    }

    /// Waits until the memory is needed for a newer body; what to tell the sender.
    pub(super) fn evicted(&self) -> impl Future<Output = Problem> + use<> {
        let closing = Arc::clone(&self.closing);
        async move {
            closing.notified().await;
            Shortage::All.problem()
        }
    }

    /// Notes that the body is there in full: it is given up for no other one any more.
    pub(super) fn finish(&mut self) -> Result<(), Problem> {
        let mut taken = self.budget.taken();
        let body = taken.bodies.get_mut(&self.id);
        body.ok_or_else(|| Shortage::All.problem())?.closing = None;
        Ok(())
    }
}

impl Drop for BodyReservation {
    fn drop(&mut self) {
        self.budget.taken().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: usize = 256 * 1024;

    fn budget() -> &'static Budget {
        Box::leak(Box::default())
    }

    fn share(
        budget: &'static Budget,
        account: Account,
        limit: usize,
        bytes: usize,
    ) -> Result<BodyReservation, Problem> {
        let mut share = BodyReservation::open_in(budget, account, limit, bytes)?;
        share.take(bytes)?;
        Ok(share)
    }

    fn anonymous(last: u8) -> Account {
        Account::anonymous(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn one_account_gets_a_quarter() {
        let budget = budget();
        let share = |account, bytes| share(budget, account, LONG, bytes);
        let [ann, bob] = [(); 2].map(|()| Account::Authenticated(Uuid::now_v7()));
        let _most = share(ann, AUTHENTICATED_POOL_BYTES / 4).unwrap();
        let refused = share(ann, 1).err().unwrap();
        assert_eq!(
            (refused.kind, refused.retry_after),
            (ProblemKind::Unavailable, Some(1))
        );
        drop(share(bob, AUTHENTICATED_POOL_BYTES / 4).unwrap());
        let rest = share(Account::SoleClient, AUTHENTICATED_POOL_BYTES / 4 * 3).unwrap();
        assert!(share(bob, 1).is_err(), "there is no more room");
        drop(rest);
        share(bob, 1).unwrap();
    }

    #[test]
    fn long_bodies_take_nothing_from_logins_or_users() {
        let budget = budget();
        let mut shares: Vec<_> = (0..4)
            .map(|n| share(budget, anonymous(n), LONG, ANONYMOUS_LARGE_POOL_BYTES / 4).unwrap())
            .collect();
        for share in &mut shares {
            share.finish().unwrap();
        }
        assert!(share(budget, anonymous(9), LONG, 1).is_err());
        share(budget, anonymous(9), SMALL_BODY_BYTES, 1).unwrap();
        share(budget, Account::SoleClient, LONG, AUTHENTICATED_POOL_BYTES).unwrap();
    }

    #[test]
    fn oldest_unfinished_body_makes_room() {
        let budget = budget();
        let quarter = ANONYMOUS_LARGE_POOL_BYTES / 4;
        let mut held: Vec<_> = (0..4)
            .map(|n| share(budget, anonymous(n), LONG, quarter).unwrap())
            .collect();
        held[0].finish().unwrap();
        let _own = share(budget, anonymous(2), LONG, 1).unwrap();
        assert!(held[2].take(1).is_err(), "the oldest of that network went");
        drop(share(budget, anonymous(8), LONG, quarter).unwrap());
        assert!(held[1].take(1).is_err(), "then the oldest of all");
        assert!(held[1].finish().is_err());
        held[3].finish().unwrap();
        held[0].finish().unwrap();
    }

    proptest! {
        #[test]
        fn body_budget_is_returned_whole(steps in prop::collection::vec((0_u8..4, 0_usize..20 << 20, any::<bool>()), 0..50)) {
            let budget = budget();
            let mut shares = Vec::new();
            for (who, bytes, is_finished) in steps {
                let (account, bytes) = match who {
                    0 => (Account::SoleClient, bytes),
                    1 => (Account::Authenticated(Uuid::nil()), bytes),
                    n => (anonymous(n), bytes / 16),
                };
                if let Ok(mut share) = share(budget, account, LONG, bytes) {
                    if is_finished {
                        share.finish().unwrap();
                    }
                    shares.push(share);
                }
                let taken = budget.taken();
                prop_assert!(taken.parts.iter().all(|(part, bytes)| *bytes <= part.bytes()));
                prop_assert!(taken.payers.iter().all(|(payer, bytes)| *bytes <= payer.own_bytes()));
            }
            shares.clear();
            let taken = budget.taken();
            prop_assert!(taken.parts.values().all(|bytes| *bytes == 0));
            prop_assert_eq!((taken.payers.len(), taken.bodies.len()), (0, 0));
        }
    }
}
