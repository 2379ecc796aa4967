//! Shares of accounts and pools, evictions, and memory that comes back.

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
    let mut share = BodyReservation::open_in(budget, (account, account.pool(limit)), bytes)?;
    share.reserve(bytes)?;
    Ok(share)
}

fn anonymous(last: u8) -> Account {
    Account::anonymous(IpAddr::from([192, 0, 2, last]))
}

#[test]
fn one_account_gets_quarter_of_budget() {
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
    assert!(share(bob, 1).is_err(), "the budget is used up");
    drop(rest);
    share(bob, 1).unwrap();
}

#[test]
fn long_bodies_leave_budget_to_logins() {
    let budget = budget();
    let mut shares: Vec<_> = (0..4)
        .map(|n| share(budget, anonymous(n), LONG, ANONYMOUS_LARGE_POOL_BYTES / 4).unwrap())
        .collect();
    for share in &mut shares {
        share.mark_complete().unwrap();
    }
    assert!(share(budget, anonymous(9), LONG, 1).is_err());
    share(budget, anonymous(9), SMALL_BODY_BYTES, 1).unwrap();
    share(budget, Account::SoleClient, LONG, AUTHENTICATED_POOL_BYTES).unwrap();
}

#[test]
fn waiting_model_calls_leave_memory_to_others() {
    let budget = budget();
    let share = |account, bytes| {
        let mut share = BodyReservation::open_in(budget, (account, Pool::Models), bytes)?;
        share.reserve(bytes).map(|()| share)
    };
    let users = [(); 4].map(|()| Account::Authenticated(Uuid::now_v7()));
    let quarter = MODELS_POOL_BYTES / 4;
    let _waiting = users.map(|user| share(user, quarter).unwrap());
    let own = share(users[0], 1).err().unwrap();
    assert!(own.detail.starts_with("your calls of models"));
    let all = share(Account::Authenticated(Uuid::now_v7()), 1)
        .err()
        .unwrap();
    assert_eq!(
        (all.kind, all.retry_after),
        (ProblemKind::Unavailable, Some(1))
    );
    let task = BodyReservation::open_in(budget, (users[0], Pool::Authenticated), 0);
    task.unwrap().reserve(AUTHENTICATED_POOL_BYTES / 4).unwrap();
}

#[test]
fn oldest_unfinished_body_makes_room() {
    let budget = budget();
    let quarter = ANONYMOUS_LARGE_POOL_BYTES / 4;
    let mut held: Vec<_> = (0..4)
        .map(|n| share(budget, anonymous(n), LONG, quarter).unwrap())
        .collect();
    held[0].mark_complete().unwrap();
    let _own = share(budget, anonymous(2), LONG, 1).unwrap();
    assert!(
        held[2].reserve(1).is_err(),
        "the oldest of that network went"
    );
    drop(share(budget, anonymous(8), LONG, quarter).unwrap());
    assert!(held[1].reserve(1).is_err(), "then the oldest of all");
    assert!(held[1].mark_complete().is_err());
    held[3].mark_complete().unwrap();
    held[0].mark_complete().unwrap();
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
                    share.mark_complete().unwrap();
                }
                shares.push(share);
            }
            let usage = budget.0.lock();
            prop_assert!(usage.pools.iter().all(|(pool, bytes)| *bytes <= pool.bytes()));
            prop_assert!(usage.accounts.iter().all(|(owner, bytes)| *bytes <= owner.limit_bytes()));
        }
        shares.clear();
        let usage = budget.0.lock();
        prop_assert!(usage.pools.values().all(|bytes| *bytes == 0));
        prop_assert_eq!((usage.accounts.len(), usage.bodies.len()), (0, 0));
    }
}
