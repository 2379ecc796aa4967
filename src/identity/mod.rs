//! Who is calling: users by password and token, nodes by pre-shared key and token, the
//! orchestrator itself by a token that each node's Worker API is given.
//!
//! User tokens and node tokens have separate keys and audiences, so that neither passes for
//! the other. An access token names its session and is good only while that session lives,
//! which is looked up at each call: logout works at once.

mod keys;
mod password;
mod rate_limits;
mod sessions;
mod throttle;
mod tokens;
mod users;

pub use keys::Keys;
pub use password::hash as hash_password;
pub use users::UserAction;

use crate::{
    api::{
        NodeId, SessionId, UserId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        auth::User,
        problem::{Problem, ProblemKind},
        time::Time,
    },
    background,
    digest::sha256_hex,
    errors,
    network::client_network,
    store::{Authority, Store, StoreError},
};
use rate_limits::{DenialLog, RateLimiter};
use std::{future::Future, net::IpAddr, time::Duration};
use subtle::ConstantTimeEq as _;
use throttle::{Attempt, Throttle, ThrottleKey};
use tokio::sync::watch;

/// How often a user's tokens may be refreshed in a second; each refresh stays written down.
const REFRESHES_PER_SECOND: u32 = 2;
/// When a read that was ended or refused may go better, in seconds.
const READ_RETRY_SECONDS: u64 = 5;
/// Nodes that may register for the first time from one address, at once and a second after that: a rack of
/// machines starts together, and somebody with the key can't fill the list of nodes.
const NEW_NODES_BURST: u32 = 64;
const NEW_NODES_PER_SECOND: u32 = 1;
/// How long an access token lives.
const ACCESS_TOKEN_LIFETIME: Duration = Duration::from_mins(15);

/// A user who showed a good access token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub user: User,
    /// By which login.
    pub session: SessionId,
}

impl Caller {
    /// That this caller does something, to be written down with it.
    pub fn audit_event(&self, action: AuditAction, origin: &RequestOrigin) -> AuditEvent {
        AuditEvent::new(action, Time::now(), Some(origin)).by(self.user.id, &self.user.handle)
    }

    /// What a write is to look at again; see [`Authority`].
    pub fn authority(&self) -> Authority {
        Authority {
            session: self.session,
            user: self.user.id,
            admin: false,
        }
    }
}

/// The room's one door.
pub struct Identity {
    store: Store,
    keys: Keys,
    logins: Throttle,
    registrations: Throttle,
    new_nodes: RateLimiter<IpAddr>,
    requests: RateLimiter<UserId>,
    refreshes: RateLimiter<UserId>,
    denials: DenialLog,
    hasher: password::Hasher,
    /// Says that sessions were ended.
    revoked: watch::Sender<()>,
}

/// A fault of the store is a 500, or 503 where an operator can act; its text goes to the log alone.
pub fn store_problem(error: StoreError) -> Problem {
    match error {
        StoreError::NotAuthorized => {
            return Problem::unauthorized("your session has ended meanwhile; log in again");
        }
        StoreError::ListsBusy => {
            let text = "you read too many lists at once; wait for those under way, then try again";
            return Problem::new(ProblemKind::TooManyRequests, text)
                .retry_after(READ_RETRY_SECONDS);
        }
        StoreError::TooSlow => {
            tracing::warn!(error = %error, "a read of the database was ended");
            let text = format!(
                "{error}, and was ended; ask for less (a smaller limit), or try again later"
            );
            return Problem::new(ProblemKind::Unavailable, text).retry_after(READ_RETRY_SECONDS);
        }
        StoreError::LowSpace(low) => {
            let text = format!("{low}; until then no new task is taken");
            return Problem::new(ProblemKind::InsufficientStorage, text);
        }
        // The log has it already, from when it was noted.
        StoreError::Fault(trouble) => {
            return Problem::new(ProblemKind::Unavailable, trouble.to_string());
        }
        _ => tracing::error!(error = errors::chain(&error), "the store failed"),
    }
    match (error.storage_fault(), error) {
        (Some(trouble), _) => Problem::new(ProblemKind::Unavailable, trouble.to_string()),
        (None, StoreError::Commit(_) | StoreError::Closed) => Problem::new(
            ProblemKind::Unavailable,
            "the database takes no writes at present; the operator finds the reason in the orchestrator's log",
        ),
        _ => Problem::internal(),
    }
}

/// A wrong pre-shared key, which counts as a guess once this is dropped.
pub struct WrongPsk {
    attempt: Attempt,
}

impl WrongPsk {
    /// Counts it, and says what to do.
    pub fn refuse(self, from: IpAddr) -> Problem {
        tracing::warn!(address = %from, "registration with a wrong pre-shared key refused");
        Problem::unauthorized(
            "the pre-shared key is wrong, or an old one; copy the present one from keys/psk of the orchestrator's data directory, or from its --psk-file",
        )
    }
}

impl Identity {
    /// Over this store, with these keys. Each user may make `rate` requests a second; any number
    /// when it is 0.
    pub fn new(store: Store, keys: Keys, rate: u32) -> Self {
        Self {
            store,
            keys,
            logins: Throttle::default(),
            registrations: Throttle::default(),
            new_nodes: RateLimiter::with_burst(NEW_NODES_PER_SECOND, NEW_NODES_BURST),
            requests: RateLimiter::new(rate),
            refreshes: RateLimiter::new(REFRESHES_PER_SECOND),
            denials: DenialLog::default(),
            hasher: password::Hasher::default(),
            revoked: watch::Sender::new(()),
        }
    }

    /// Who shows this access token.
    pub async fn caller(&self, bearer: Option<&str>) -> Result<Caller, Problem> {
        let Some(token) = bearer else {
            return Err(Problem::unauthorized(
                "log in first (POST /v1/auth/login) and send Authorization: Bearer <token>",
            ));
        };
        let dead = || {
            Problem::unauthorized(
                "the access token is not valid or has expired; refresh it or log in again",
            )
        };
        let (user, session) = tokens::check_access(&self.keys, token).ok_or_else(dead)?;
        self.requests.admit(user)?;
        let user = self
            .store
            .session_user(session, user, Time::now())
            .await
            .map_err(store_problem)?;
        Ok(Caller {
            user: user.ok_or_else(dead)?,
            session,
        })
    }

    /// The same for what only admins may do. Whoever else tries is written down.
    pub async fn admin(
        &self,
        bearer: Option<&str>,
        action: AuditAction,
        origin: &RequestOrigin,
    ) -> Result<Caller, Problem> {
        let caller = self.caller(bearer).await?;
        if caller.user.is_admin {
            return Ok(caller);
        }
        let problem = Problem::new(
            ProblemKind::Forbidden,
            "only an admin may do this; ask one, or log in as one",
        );
        if self.denials.is_new(caller.user.id, action) {
            let event = caller.audit_event(action, origin).refused(&problem);
            self.record_audit(event).await?;
        }
        Err(problem)
    }

    /// Whether a caller's session still lives; asked again after [`revocations`](Self::revocations)
    /// has said something. Not when that can't be found out.
    pub async fn is_session_active(&self, caller: &Caller) -> bool {
        let (session, user) = (caller.session, caller.user.id);
        let found = self.store.session_user(session, user, Time::now()).await;
        matches!(found, Ok(Some(_)))
    }

    /// Hears when sessions were ended.
    pub fn revocations(&self) -> watch::Receiver<()> {
        self.revoked.subscribe()
    }

    /// Writes what may end sessions, and says so where it did; also when who asked hangs up meanwhile.
    async fn write_and_notify<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        has_ended: fn(&T) -> bool,
    ) -> Result<T, Problem> {
        let revoked = self.revoked.clone();
        let work = background::spawn("write_and_notify", async move {
            let outcome = write.await?;
            if has_ended(&outcome) {
                revoked.send_replace(());
            }
            Ok(outcome)
        });
        let outcome = work.await.map_err(|error| {
            tracing::error!(%error, "a change of sessions panicked");
            Problem::internal()
        })?;
        outcome.map_err(store_problem)
    }

    /// Writes down what changed nothing else.
    pub async fn record_audit(&self, event: AuditEvent) -> Result<(), Problem> {
        self.store.audit_add(event).await.map_err(store_problem)
    }

    /// Checks the pre-shared key.
    pub fn check_psk(&self, psk: &str, from: IpAddr) -> Result<(), Problem> {
        let shown = self.verify_psk(psk, from)?;
        shown.map_err(|wrong| wrong.refuse(from))
    }

    /// Whether this is the pre-shared key. One that is wrong counts as a guess, unless the same request shows
    /// the right one as well.
    pub fn verify_psk(&self, psk: &str, from: IpAddr) -> Result<Result<(), WrongPsk>, Problem> {
        let admitted = self.registrations.admit(vec![ThrottleKey::address(from)]);
        let attempt = admitted.map_err(|problem| {
            let why = "nodes at this address have shown a wrong pre-shared key, this one or others; give each of them the present one";
            let detail = format!("{}: {why}", problem.detail);
            Problem { detail, ..problem }
        })?;
        if !self.is_psk(psk) {
            return Ok(Err(WrongPsk { attempt }));
        }
        attempt.succeed();
        Ok(Ok(()))
    }

    /// Checks another key of a request that has shown a wrong one.
    pub fn verify_other_psk(
        &self,
        wrong: WrongPsk,
        psk: &str,
        from: IpAddr,
    ) -> Result<(), Problem> {
        if !self.is_psk(psk) {
            return Err(wrong.refuse(from));
        }
        wrong.attempt.succeed();
        Ok(())
    }

    fn is_psk(&self, psk: &str) -> bool {
        // Equal lengths for a comparison in constant time.
        let (shown, ours) = (sha256_hex(psk), sha256_hex(self.keys.psk()));
        shown.as_bytes().ct_eq(ours.as_bytes()).into()
    }

    /// Lets a node that isn't known register from there, or says how long to wait.
    pub fn admit_new_node(&self, from: IpAddr) -> Result<(), Problem> {
        self.new_nodes.admit_or(client_network(from), |seconds| {
            format!(
                "too many new nodes register from this address; wait {seconds} s and register again \
                 (nodes that are known already are not limited)"
            )
        })
    }

    /// The pre-shared key itself, for a node in the same process.
    pub fn psk(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(self.keys.psk().to_owned())
    }

    /// A token for this registration of a node, and when it ends.
    pub fn node_token(&self, node: NodeId, registration: i64) -> Result<(String, Time), Problem> {
        tokens::issue_node(&self.keys, node, registration)
    }

    /// Which node shows this token, and of which registration it is.
    pub fn node(&self, bearer: Option<&str>) -> Result<(NodeId, i64), Problem> {
        bearer
            .and_then(|token| tokens::check_node(&self.keys, token))
            .ok_or_else(|| {
                Problem::unauthorized(
                    "the node's token is missing, not valid or has expired; register again",
                )
            })
    }

    /// The token that we show at this node's Worker API, as delivered after this registration.
    pub fn worker_token(&self, node: NodeId, registration: i64) -> String {
        tokens::worker_bearer(&self.keys, node, registration)
    }
}
