//! Memory for request bodies, shared by all listeners of the process.
//!
//! A body takes from the budget as it comes and gives back when its request is done. Bodies of strangers have
//! parts of their own, long and short ones, so that they can't keep users out, and registrations no logins.
//! Nobody gets more than a quarter of a part, so that one user can't keep the others out. A stranger can also
//! send slowly, or all but the last byte: where a part is used up, the oldest body that is still to be
//! completed goes for the newer one.

use crate::{
    api::problem::{Kind, Problem},
    network::network,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use uuid::Uuid;

/// Bodies of all requests that have shown good credentials, in bytes.
const KNOWN_BYTES: usize = 56 * 1024 * 1024;
/// Long bodies of all others, such as registrations.
const LONG_STRANGER_BYTES: usize = 4 * 1024 * 1024;
/// Short ones, such as logins.
const SHORT_STRANGER_BYTES: usize = 4 * 1024 * 1024;
/// Longest body that a call may take for its body to count as a short one.
const SHORT: usize = 16 * 1024;

static BUDGET: LazyLock<Budget> = LazyLock::new(Budget::default);

/// Whose body it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Account {
    /// Sender without credentials, by network.
    Stranger(IpAddr),
    /// User or node.
    Known(Uuid),
    /// The one caller of a listener, who may use all of the budget.
    Sole,
}

/// What has a limit in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Part {
    Known,
    LongStranger,
    ShortStranger,
}

impl Account {
    /// Account of whoever sends from an address without credentials.
    pub(super) fn stranger(address: IpAddr) -> Self {
        Self::Stranger(network(address))
    }

    /// Part that a body of at most `limit` bytes is taken from.
    fn part(self, limit: usize) -> Part {
        match self {
            Self::Stranger(_) if limit <= SHORT => Part::ShortStranger,
            Self::Stranger(_) => Part::LongStranger,
            Self::Known(_) | Self::Sole => Part::Known,
        }
    }
}

impl Part {
    fn bytes(self) -> usize {
        match self {
            Self::Known => KNOWN_BYTES,
            Self::LongStranger => LONG_STRANGER_BYTES,
            Self::ShortStranger => SHORT_STRANGER_BYTES,
        }
    }
}

/// By whom and from what a body is paid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Payer {
    account: Account,
    part: Part,
}

impl Payer {
    /// Bytes of this one alone.
    fn own_bytes(self) -> usize {
        match self.account {
            Account::Sole => self.part.bytes(),
            Account::Stranger(_) | Account::Known(_) => self.part.bytes() / 4,
        }
    }
}

#[derive(Default)]
struct Budget(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    next: u64,
    parts: HashMap<Part, usize>,
    payers: HashMap<Payer, usize>,
    /// Bodies, oldest first.
    bodies: BTreeMap<u64, Body>,
}

struct Body {
    payer: Payer,
    bytes: usize,
    /// Tells a stranger's that it is given up; none for others, nor once it is there in full.
    closing: Option<Arc<Notify>>,
}

impl Taken {
    /// Why so many more bytes don't fit, if so.
    fn lack(&self, payer: Payer, bytes: usize) -> Option<Lack> {
        let own = self.payers.get(&payer).copied().unwrap_or(0);
        let all = self.parts.get(&payer.part).copied().unwrap_or(0);
        if own + bytes > payer.own_bytes() {
            return Some(Lack::Own);
        }
        (all + bytes > payer.part.bytes()).then_some(Lack::All)
    }

    /// Takes so many more bytes for a body, for which older ones may have to go.
    fn take(&mut self, id: u64, bytes: usize) -> Result<(), Problem> {
        let Some(payer) = self.bodies.get(&id).map(|body| body.payer) else {
            return Err(Lack::All.problem());
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
    fn oldest_unfinished(&self, payer: Payer, lack: Lack) -> Option<u64> {
        let found = self.bodies.iter().find(|(_, body)| {
            let is_of_use = match lack {
                Lack::Own => body.payer == payer,
                Lack::All => body.payer.part == payer.part,
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
enum Lack {
    Own,
    All,
}

impl Lack {
    fn problem(self) -> Problem {
        let text = match self {
            Self::Own => {
                "too many request bodies of yours are being received; send fewer at a time, and this one again"
            }
            Self::All => {
                "too many request bodies are being received; wait a moment and send it again"
            }
        };
        Problem::new(Kind::Unavailable, text).retry_after(1)
    }
}

impl Budget {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that one body has taken; given back when dropped.
pub(super) struct Share {
    budget: &'static Budget,
    id: u64,
    closing: Arc<Notify>,
}

impl Share {
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
        let payer = Payer { account, part };
        let closing = Arc::<Notify>::default();
        let mut taken = budget.taken();
        let is_known = part == Part::Known;
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
    pub(super) fn given_up(&self) -> impl Future<Output = Problem> + use<> {
        let closing = Arc::clone(&self.closing);
        async move {
            closing.notified().await;
            Lack::All.problem()
        }
    }

    /// Notes that the body is there in full: it is given up for no other one any more.
    pub(super) fn finish(&mut self) -> Result<(), Problem> {
        let mut taken = self.budget.taken();
        let body = taken.bodies.get_mut(&self.id);
        body.ok_or_else(|| Lack::All.problem())?.closing = None;
        Ok(())
    }
}

impl Drop for Share {
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
    ) -> Result<Share, Problem> {
        let mut share = Share::open_in(budget, account, limit, bytes)?;
        share.take(bytes)?;
        Ok(share)
    }

    fn stranger(last: u8) -> Account {
        Account::stranger(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn one_account_gets_a_quarter() {
        let budget = budget();
        let share = |account, bytes| share(budget, account, LONG, bytes);
        let [ann, bob] = [(); 2].map(|()| Account::Known(Uuid::now_v7()));
        let _most = share(ann, KNOWN_BYTES / 4).unwrap();
        let refused = share(ann, 1).err().unwrap();
        assert_eq!(
            (refused.kind, refused.retry_after),
            (Kind::Unavailable, Some(1))
        );
        drop(share(bob, KNOWN_BYTES / 4).unwrap());
        let rest = share(Account::Sole, KNOWN_BYTES / 4 * 3).unwrap();
        assert!(share(bob, 1).is_err(), "there is no more room");
        drop(rest);
        share(bob, 1).unwrap();
    }

    #[test]
    fn long_bodies_take_nothing_from_logins_or_users() {
        let budget = budget();
        let mut shares: Vec<_> = (0..4)
            .map(|n| share(budget, stranger(n), LONG, LONG_STRANGER_BYTES / 4).unwrap())
            .collect();
        for share in &mut shares {
            share.finish().unwrap();
        }
        assert!(share(budget, stranger(9), LONG, 1).is_err());
        share(budget, stranger(9), SHORT, 1).unwrap();
        share(budget, Account::Sole, LONG, KNOWN_BYTES).unwrap();
    }

    #[test]
    fn oldest_unfinished_body_makes_room() {
        let budget = budget();
        let quarter = LONG_STRANGER_BYTES / 4;
        let mut held: Vec<_> = (0..4)
            .map(|n| share(budget, stranger(n), LONG, quarter).unwrap())
            .collect();
        held[0].finish().unwrap();
        let _own = share(budget, stranger(2), LONG, 1).unwrap();
        assert!(held[2].take(1).is_err(), "the oldest of that network went");
        drop(share(budget, stranger(8), LONG, quarter).unwrap());
        assert!(held[1].take(1).is_err(), "then the oldest of all");
        assert!(held[1].finish().is_err());
        held[3].finish().unwrap();
        held[0].finish().unwrap();
    }

    proptest! {
        #[test]
        fn all_is_given_back(steps in prop::collection::vec((0_u8..4, 0_usize..20 << 20, any::<bool>()), 0..50)) {
            let budget = budget();
            let mut shares = Vec::new();
            for (who, bytes, is_finished) in steps {
                let (account, bytes) = match who {
                    0 => (Account::Sole, bytes),
                    1 => (Account::Known(Uuid::nil()), bytes),
                    n => (stranger(n), bytes / 16),
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
