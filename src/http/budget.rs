//! Memory for request bodies, shared by all listeners of the process.
//!
//! A body takes from the budget as it comes and gives back when its request is done. Bodies of strangers have
//! a part of their own, so that they can't keep users out, and nobody gets more than a quarter of a part, so
//! that one user can't keep the others out.

use crate::{
    api::problem::{Kind, Problem},
    network::network,
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};
use uuid::Uuid;

/// Bodies of all requests that have shown good credentials, in bytes.
const KNOWN_BYTES: usize = 56 * 1024 * 1024;
/// Bodies of all others, such as logins.
const STRANGER_BYTES: usize = 8 * 1024 * 1024;

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

impl Account {
    /// Account of whoever sends from an address without credentials.
    pub(super) fn stranger(address: IpAddr) -> Self {
        Self::Stranger(network(address))
    }

    /// Bytes of all accounts of this kind, and of this one alone.
    fn limits(self) -> [usize; 2] {
        match self {
            Self::Stranger(_) => [STRANGER_BYTES, STRANGER_BYTES / 4],
            Self::Known(_) => [KNOWN_BYTES, KNOWN_BYTES / 4],
            Self::Sole => [KNOWN_BYTES, KNOWN_BYTES],
        }
    }

    fn is_stranger(self) -> bool {
        matches!(self, Self::Stranger(_))
    }
}

#[derive(Default)]
struct Budget(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    strangers: usize,
    known: usize,
    accounts: HashMap<Account, usize>,
}

impl Taken {
    fn part(&mut self, account: Account) -> &mut usize {
        if account.is_stranger() {
            &mut self.strangers
        } else {
            &mut self.known
        }
    }

    /// Checks that so many more bytes fit.
    fn check(&mut self, account: Account, bytes: usize) -> Result<(), Problem> {
        let [all, own] = account.limits();
        let taken = self.accounts.get(&account).copied().unwrap_or(0);
        if taken + bytes <= own && *self.part(account) + bytes <= all {
            return Ok(());
        }
        let text = if taken + bytes > own {
            "too many request bodies of yours are being received; send fewer at a time, and this one again"
        } else {
            "too many request bodies are being received; wait a moment and send it again"
        };
        Err(Problem::new(Kind::Unavailable, text).retry_after(1))
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
    account: Account,
    bytes: usize,
}

impl Share {
    /// Nothing yet, for a body that is said to have so many bytes; fails where those don't fit now.
    pub(super) fn open(account: Account, announced: usize) -> Result<Self, Problem> {
        Self::open_in(&BUDGET, account, announced)
    }

    fn open_in(
        budget: &'static Budget,
        account: Account,
        announced: usize,
    ) -> Result<Self, Problem> {
        budget.taken().check(account, announced)?;
        Ok(Self {
            budget,
            account,
            bytes: 0,
        })
    }

    /// Takes more.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        let mut taken = self.budget.taken();
        taken.check(self.account, bytes)?;
        *taken.part(self.account) += bytes;
        *taken.accounts.entry(self.account).or_default() += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        *taken.part(self.account) -= self.bytes;
        if let Some(own) = taken.accounts.get_mut(&self.account) {
            *own -= self.bytes;
            if *own == 0 {
                taken.accounts.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget() -> &'static Budget {
        Box::leak(Box::default())
    }

    fn share(budget: &'static Budget, account: Account, bytes: usize) -> Result<Share, Problem> {
        let mut share = Share::open_in(budget, account, bytes)?;
        share.take(bytes)?;
        Ok(share)
    }

    #[test]
    fn one_account_gets_a_quarter() {
        let budget = budget();
        let [ann, bob] = [(); 2].map(|()| Account::Known(Uuid::now_v7()));
        let _most = share(budget, ann, KNOWN_BYTES / 4).unwrap();
        let refused = share(budget, ann, 1).err().unwrap();
        assert_eq!(
            (refused.kind, refused.retry_after),
            (Kind::Unavailable, Some(1))
        );
        drop(share(budget, bob, KNOWN_BYTES / 4).unwrap());
        let rest = share(budget, Account::Sole, KNOWN_BYTES / 4 * 3).unwrap();
        assert!(share(budget, bob, 1).is_err(), "there is no more room");
        drop(rest);
        share(budget, bob, 1).unwrap();
    }

    #[test]
    fn strangers_take_nothing_from_users() {
        let budget = budget();
        let stranger = |n: u8| Account::stranger(IpAddr::from([192, 0, 2, n]));
        let shares: Vec<_> = (0..4)
            .map(|n| share(budget, stranger(n), STRANGER_BYTES / 4))
            .collect();
        assert!(shares.iter().all(Result::is_ok));
        assert!(share(budget, stranger(9), 1).is_err());
        share(budget, Account::Sole, KNOWN_BYTES).unwrap();
    }

    proptest! {
        #[test]
        fn all_is_given_back(steps in prop::collection::vec((0_u8..4, 0_usize..20 << 20), 0..50)) {
            let budget = budget();
            let mut shares = Vec::new();
            for (who, bytes) in steps {
                let account = match who {
                    0 => Account::Sole,
                    1 => Account::Known(Uuid::nil()),
                    n => Account::stranger(IpAddr::from([192, 0, 2, n])),
                };
                shares.extend(share(budget, account, bytes));
                let taken = budget.taken();
                prop_assert!(taken.known <= KNOWN_BYTES && taken.strangers <= STRANGER_BYTES);
            }
            shares.clear();
            let taken = budget.taken();
            prop_assert_eq!((taken.known, taken.strangers, taken.accounts.len()), (0, 0, 0));
        }
    }
}
