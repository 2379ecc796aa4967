//! Which connections are accepted, and which are evicted.

use super::*;
use futures_util::FutureExt as _;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn is_evicted(permit: &ConnectionPermit) -> bool {
    permit.evicted().now_or_never().is_some()
}

#[test]
fn unknown_network_gets_few_permits_until_authorized() {
    let (limiter, now) = (ConnectionLimiter::new(1024), Instant::now());
    let [known, other] = ["192.0.2.1", "192.0.2.2"].map(ip);
    let acquire = |peer| limiter.acquire(peer, false, now).map(Arc::new);
    let mut permits: Vec<_> = (0..UNKNOWN_NETWORK_LIMIT)
        .map(|_| acquire(known).unwrap())
        .collect();
    assert!(acquire(known).is_none());
    assert!(acquire(other).is_some());
    permits[0].authorize();
    permits.extend((UNKNOWN_NETWORK_LIMIT..256).map(|_| acquire(known).unwrap()));
    assert!(acquire(known).is_none(), "a quarter is the most");
    permits.clear();
    assert!(limiter.table.lock().from.is_empty());
    permits.extend((0..256).map(|_| acquire(known).unwrap()));
    let later = now + AUTHORIZED_NETWORK_TTL + HEAD_GRACE_PERIOD;
    permits.clear();
    permits.extend(
        (0..UNKNOWN_NETWORK_LIMIT).map(|_| Arc::new(limiter.acquire(known, false, later).unwrap())),
    );
    assert!(
        limiter.acquire(known, false, later).is_none(),
        "the authorization expires"
    );
}

#[test]
fn proxies_may_have_all_permits() {
    let (limiter, now) = (ConnectionLimiter::new(64), Instant::now());
    let proxy = ip("10.0.0.1");
    let permits: Vec<_> = (0..64)
        .map(|_| Arc::new(limiter.acquire(proxy, true, now).unwrap()))
        .collect();
    let _exchanges: Vec<_> = permits
        .iter()
        .map(|permit| permit.begin_request(false))
        .collect();
    permits.iter().for_each(|permit| permit.authorize());
    assert!(limiter.acquire(ip("192.0.2.1"), false, now).is_none());
}

#[test]
fn least_valuable_connection_makes_room() {
    let (limiter, now) = (ConnectionLimiter::new(5), Instant::now());
    let acquire = |last: u8| {
        let peer = IpAddr::from([192, 0, 2, last]);
        Arc::new(limiter.acquire(peer, false, now).unwrap())
    };
    let [authorized, unauthorized, idle, head, newer] = [1, 2, 3, 4, 5].map(acquire);
    let _running = authorized.begin_request(false);
    authorized.authorize();
    let _asking = unauthorized.begin_request(false);
    let exchange = idle.begin_request(false);
    idle.authorize();
    drop(exchange);
    let mut newcomers = Vec::new();
    for (n, next) in [&head, &newer].into_iter().enumerate() {
        assert!(!is_evicted(next));
        newcomers.push(acquire(6 + n as u8));
        newcomers[n].begin_request(false);
        newcomers[n].authorize();
        assert!(is_evicted(next), "{n}");
    }
    newcomers.push(acquire(8));
    let _busy: Vec<_> = newcomers
        .iter()
        .map(|permit| permit.begin_request(false))
        .collect();
    newcomers.iter().for_each(|permit| permit.authorize());
    assert!(is_evicted(&idle), "then one that is only idle");
    let last = acquire(9);
    assert!(is_evicted(&unauthorized), "then one that asks");
    let _exchange = last.begin_request(false);
    last.authorize();
    assert!(limiter.acquire(ip("192.0.2.10"), false, now).is_none());
    assert!(!is_evicted(&authorized));
}

#[test]
fn network_evicts_its_own_oldest_heads() {
    let (limiter, now) = (ConnectionLimiter::new(1024), Instant::now());
    let peer = ip("127.0.0.1");
    let permits: Vec<_> = (0..UNKNOWN_NETWORK_LIMIT)
        .map(|_| limiter.acquire(peer, false, now).unwrap())
        .collect();
    assert!(
        limiter.acquire(peer, false, now).is_none(),
        "a burst has to wait"
    );
    let other = limiter.acquire(ip("127.0.0.2"), false, now).unwrap();
    let _newcomer = limiter
        .acquire(peer, false, now + HEAD_GRACE_PERIOD)
        .unwrap();
    let evicted = permits.iter().filter(|permit| is_evicted(permit)).count();
    assert_eq!((evicted, is_evicted(&other)), (1, false));
}

#[test]
fn account_leaves_permits_at_its_own_address() {
    let (limiter, now) = (ConnectionLimiter::new(1024), Instant::now());
    let [ann, bob] = [(); 2].map(|()| Account::Authenticated(uuid::Uuid::now_v7()));
    let ask = |account, now| {
        let permit = limiter.acquire(ip("127.0.0.1"), false, now).map(Arc::new);
        let permit = permit.unwrap();
        let exchange = permit.begin_request(true);
        let turn = permit.authorize_account_at(account, now);
        turn.map(|()| (permit, exchange))
            .map_err(|problem| problem.kind)
    };
    let mut hers: Vec<_> = (0..192).map(|_| ask(ann, now).unwrap()).collect();
    assert_eq!(ask(ann, now).err(), Some(ProblemKind::Unavailable));
    let _his = ask(bob, now).unwrap();
    for (permit, _) in &hers[1..] {
        permit.mark_received();
    }
    let later = now + BODY_GRACE_PERIOD;
    let _newer = ask(ann, later).unwrap();
    assert!(
        is_evicted(&hers[0].0),
        "a body that does not come makes room"
    );
    assert!(ask(ann, later).is_err(), "complete requests are answered");
    drop(hers.pop());
    ask(ann, later).unwrap();
}

#[test]
fn readers_of_sole_caller_yield_to_jobs() {
    let (limiter, now) = (ConnectionLimiter::new(64), Instant::now());
    let ask = |is_preemptible: bool| {
        let permit = limiter.acquire(ip("127.0.0.1"), false, now).map(Arc::new)?;
        let exchange = permit.begin_request(false);
        permit.authorize_account_at(Account::SoleClient, now).ok()?;
        if is_preemptible {
            permit.mark_preemptible();
        }
        Some((permit, exchange))
    };
    let mut jobs: Vec<_> = (0..40).map(|_| ask(false).unwrap()).collect();
    let readers: Vec<_> = (0..16).map(|_| ask(true).unwrap()).collect();
    assert!(
        limiter.table.lock().from.is_empty(),
        "no network has a share"
    );
    jobs.extend((0..16).map(|_| ask(false).unwrap()));
    assert!(readers.iter().all(|(permit, _)| is_evicted(permit)));
    assert!(ask(false).is_none(), "a part is kept");
    let cancel = limiter.acquire(ip("127.0.0.1"), false, now).unwrap();
    cancel.authorize_sole_client();
    assert!(!jobs.iter().any(|(permit, _)| is_evicted(permit)));
}

#[test]
fn unfinished_body_of_any_caller_makes_room() {
    let (limiter, now) = (ConnectionLimiter::new(2), Instant::now());
    let acquire = |last: u8| {
        let peer = IpAddr::from([192, 0, 2, last]);
        limiter.acquire(peer, false, now).map(Arc::new)
    };
    let [first, second] = [1, 2].map(|last| acquire(last).unwrap());
    let _exchanges = [&first, &second].map(|permit| permit.begin_request(true));
    for permit in [&first, &second] {
        permit.authorize();
    }
    first.mark_received();
    let _newcomer = acquire(3).unwrap();
    assert!(is_evicted(&second) && !is_evicted(&first));
}

proptest! {
    #[test]
    fn table_never_exceeds_its_limits(limit in 1_usize..40, steps in prop::collection::vec((0_u8..6, 0_u8..4), 1..200)) {
        let (limiter, mut now) = (ConnectionLimiter::new(limit), Instant::now());
        let mut permits: Vec<Arc<ConnectionPermit>> = Vec::new();
        for (peer, what) in steps {
            now += Duration::from_millis(300);
            match what {
                0 | 1 => permits.extend(limiter.acquire(IpAddr::from([192, 0, 2, peer]), false, now).map(Arc::new)),
                2 => permits.first().into_iter().for_each(|permit| permit.authorize()),
                _ => drop((!permits.is_empty()).then(|| permits.remove(usize::from(peer) % permits.len()))),
            }
            let table = limiter.table.lock();
            prop_assert!(table.open.len() <= limit);
            prop_assert_eq!(table.from.values().sum::<usize>(), table.open.len());
            prop_assert!(table.from.values().all(|count| *count <= limit.div_ceil(4)));
        }
        permits.clear();
        prop_assert!(limiter.table.lock().open.is_empty());
    }
}

#[test]
fn request_limited_elsewhere_counts_again_later() {
    let (limiter, now) = (ConnectionLimiter::new(64), Instant::now());
    let peer = ip("192.0.2.1");
    let permit = Arc::new(limiter.acquire(peer, false, now).unwrap());
    let count = || limiter.table.lock().from.get(&peer).copied();
    let exchange = permit.begin_request(false);
    permit.authorize();
    permit.mark_limited_elsewhere();
    assert_eq!(count(), None);
    drop(exchange);
    assert_eq!(count(), Some(1));
    drop(permit);
    assert_eq!(count(), None);
}

#[test]
fn stream_counts_and_takes_its_connection_along() {
    let (limiter, now) = (ConnectionLimiter::new(2), Instant::now());
    let acquire = |last: u8| limiter.acquire(IpAddr::from([192, 0, 2, last]), true, now);
    let connection = Arc::new(acquire(1).unwrap());
    let open = connection.begin_request(false);
    let stream = Arc::new(acquire(1).unwrap().of_stream(&connection));
    let request = stream.begin_request(false);
    stream.authorize();
    assert!(acquire(2).is_none(), "the connection is authorized, too");
    stream.mark_preemptible();
    assert!(acquire(2).is_some());
    assert!(is_evicted(&connection));
    drop((request, stream, open, connection));
    let table = limiter.table.lock();
    assert!(table.open.is_empty() && table.from.is_empty());
}

#[test]
fn stream_evicts_none_of_its_connection() {
    let (limiter, now) = (ConnectionLimiter::new(16), Instant::now());
    let peer = ip("192.0.2.1");
    let connection = Arc::new(limiter.acquire(peer, true, now).unwrap());
    let _open = connection.begin_request(false);
    let stream = |now| {
        let permit = limiter.acquire_beside(Some(connection.as_ref()), peer, true, now);
        permit.map(|permit| Arc::new(permit.of_stream(&connection)))
    };
    let account = Account::Anonymous(peer);
    let mut open = Vec::new();
    // As many readers as an account may have, and then streams up to the limit of the listener.
    for at in 0..15 {
        let permit = stream(now).unwrap();
        open.push(permit.begin_request(true));
        if at < 3 {
            permit.authorize_account(account).unwrap();
            permit.mark_preemptible();
        } else if at == 3 {
            permit.authorize_account(account).unwrap_err();
        }
    }
    // Bodies are overdue by then.
    assert!(stream(now + 3 * BODY_GRACE_PERIOD).is_none());
    assert!(!is_evicted(&connection));
    assert!(limiter.acquire(ip("192.0.2.2"), true, now).is_some());
    assert!(is_evicted(&connection));
}
