//! Tests of what is let in and what goes.

use super::*;
use futures_util::FutureExt as _;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn is_evicted(place: &ConnectionPermit) -> bool {
    place.evicted().now_or_never().is_some()
}

#[test]
fn unknown_network_gets_few_places_until_authorized() {
    let (connections, now) = (ConnectionLimiter::new(1024), Instant::now());
    let [known, other] = ["192.0.2.1", "192.0.2.2"].map(ip);
    let acquire = |peer| connections.acquire(peer, false, now).map(Arc::new);
    let mut places: Vec<_> = (0..UNKNOWN_NETWORK_LIMIT)
        .map(|_| acquire(known).unwrap())
        .collect();
    assert!(acquire(known).is_none());
    assert!(acquire(other).is_some());
    places[0].authorize();
    places.extend((UNKNOWN_NETWORK_LIMIT..256).map(|_| acquire(known).unwrap()));
    assert!(acquire(known).is_none(), "a quarter is the most");
    places.clear();
    assert!(connections.table().from.is_empty());
    places.extend((0..256).map(|_| acquire(known).unwrap()));
    let later = now + AUTHORIZED_NETWORK_TTL + HEAD_GRACE_PERIOD;
    places.clear();
    places.extend(
        (0..UNKNOWN_NETWORK_LIMIT)
            .map(|_| Arc::new(connections.acquire(known, false, later).unwrap())),
    );
    assert!(
        connections.acquire(known, false, later).is_none(),
        "it is forgotten in time"
    );
}

#[test]
fn proxies_may_have_all_places() {
    let (connections, now) = (ConnectionLimiter::new(64), Instant::now());
    let proxy = ip("10.0.0.1");
    let places: Vec<_> = (0..64)
        .map(|_| Arc::new(connections.acquire(proxy, true, now).unwrap()))
        .collect();
    let _exchanges: Vec<_> = places.iter().map(|place| place.begin(false)).collect();
    places.iter().for_each(|place| place.authorize());
    assert!(connections.acquire(ip("192.0.2.1"), false, now).is_none());
}

#[test]
fn least_valuable_connection_makes_room() {
    let (connections, now) = (ConnectionLimiter::new(5), Instant::now());
    let acquire = |last: u8| {
        let peer = IpAddr::from([192, 0, 2, last]);
        Arc::new(connections.acquire(peer, false, now).unwrap())
    };
    let [authorized, stranger, idle, head, newer] = [1, 2, 3, 4, 5].map(acquire);
    let _running = authorized.begin(false);
    authorized.authorize();
    let _asking = stranger.begin(false);
    let exchange = idle.begin(false);
    idle.authorize();
    drop(exchange);
    let mut newcomers = Vec::new();
    for (n, next) in [&head, &newer].into_iter().enumerate() {
        assert!(!is_evicted(next));
        newcomers.push(acquire(6 + n as u8));
        newcomers[n].begin(false);
        newcomers[n].authorize();
        assert!(is_evicted(next), "{n}");
    }
    newcomers.push(acquire(8));
    let _busy: Vec<_> = newcomers.iter().map(|place| place.begin(false)).collect();
    newcomers.iter().for_each(|place| place.authorize());
    assert!(is_evicted(&idle), "then one that is only idle");
    let last = acquire(9);
    assert!(is_evicted(&stranger), "then one that asks");
    let _exchange = last.begin(false);
    last.authorize();
    assert!(connections.acquire(ip("192.0.2.10"), false, now).is_none());
    assert!(!is_evicted(&authorized));
}

#[test]
fn network_makes_room_with_its_own_old_heads() {
    let (connections, now) = (ConnectionLimiter::new(1024), Instant::now());
    let peer = ip("127.0.0.1");
    let places: Vec<_> = (0..UNKNOWN_NETWORK_LIMIT)
        .map(|_| connections.acquire(peer, false, now).unwrap())
        .collect();
    assert!(
        connections.acquire(peer, false, now).is_none(),
        "a burst has to wait"
    );
    let other = connections.acquire(ip("127.0.0.2"), false, now).unwrap();
    let _newcomer = connections
        .acquire(peer, false, now + HEAD_GRACE_PERIOD)
        .unwrap();
    let evicted = places.iter().filter(|place| is_evicted(place)).count();
    assert_eq!((evicted, is_evicted(&other)), (1, false));
}

#[test]
fn one_account_leaves_places_at_its_own_address() {
    let (connections, now) = (ConnectionLimiter::new(1024), Instant::now());
    let [ann, bob] = [(); 2].map(|()| Account::Authenticated(uuid::Uuid::now_v7()));
    let ask = |account, now| {
        let place = connections
            .acquire(ip("127.0.0.1"), false, now)
            .map(Arc::new);
        let place = place.unwrap();
        let exchange = place.begin(true);
        let turn = place.authorize_account_at(account, now);
        turn.map(|()| (place, exchange))
            .map_err(|problem| problem.kind)
    };
    let mut hers: Vec<_> = (0..192).map(|_| ask(ann, now).unwrap()).collect();
    assert_eq!(ask(ann, now).err(), Some(ProblemKind::Unavailable));
    let _his = ask(bob, now).unwrap();
    for (place, _) in &hers[1..] {
        place.receive();
    }
    let later = now + BODY_GRACE_PERIOD;
    let _newer = ask(ann, later).unwrap();
    assert!(
        is_evicted(&hers[0].0),
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
fn readers_of_sole_caller_yield_to_jobs() {
    let (connections, now) = (ConnectionLimiter::new(64), Instant::now());
    let ask = |is_preemptible: bool| {
        let place = connections
            .acquire(ip("127.0.0.1"), false, now)
            .map(Arc::new)?;
        let exchange = place.begin(false);
        place.authorize_account_at(Account::SoleClient, now).ok()?;
        if is_preemptible {
            place.mark_preemptible();
        }
        Some((place, exchange))
    };
    let mut jobs: Vec<_> = (0..40).map(|_| ask(false).unwrap()).collect();
    let readers: Vec<_> = (0..16).map(|_| ask(true).unwrap()).collect();
    assert!(
        connections.table().from.is_empty(),
        "no network has a share"
    );
    jobs.extend((0..16).map(|_| ask(false).unwrap()));
    assert!(readers.iter().all(|(place, _)| is_evicted(place)));
    assert!(ask(false).is_none(), "a part is kept");
    let cancel = connections.acquire(ip("127.0.0.1"), false, now).unwrap();
    cancel.authorize_sole_client();
    assert!(!jobs.iter().any(|(place, _)| is_evicted(place)));
}

#[test]
fn unfinished_body_makes_room_whoever_sends_it() {
    let (connections, now) = (ConnectionLimiter::new(2), Instant::now());
    let acquire = |last: u8| {
        let peer = IpAddr::from([192, 0, 2, last]);
        connections.acquire(peer, false, now).map(Arc::new)
    };
    let [first, second] = [1, 2].map(|last| acquire(last).unwrap());
    let _exchanges = [&first, &second].map(|place| place.begin(true));
    for place in [&first, &second] {
        place.authorize();
    }
    first.receive();
    let _newcomer = acquire(3).unwrap();
    assert!(is_evicted(&second) && !is_evicted(&first));
}

proptest! {
    #[test]
    fn table_never_exceeds_its_limits(limit in 1_usize..40, steps in prop::collection::vec((0_u8..6, 0_u8..4), 1..200)) {
        let (connections, mut now) = (ConnectionLimiter::new(limit), Instant::now());
        let mut places: Vec<Arc<ConnectionPermit>> = Vec::new();
        for (peer, what) in steps {
            now += Duration::from_millis(300);
            match what {
                0 | 1 => places.extend(connections.acquire(IpAddr::from([192, 0, 2, peer]), false, now).map(Arc::new)),
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
