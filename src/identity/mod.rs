//! Identity: users with passwords and tokens, nodes with a pre-shared key and tokens, and the token that the
//! orchestrator shows to each node's Worker API.
//!
//! User tokens and node tokens have separate keys and audiences, so that neither passes for the other. An
//! access token names its session and is valid only while that session is active, which is looked up on
//! each call: a logout takes effect immediately.

mod audit;
mod error;
mod keys;
mod nodes;
mod own_password;
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
        SessionId, UserId,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        auth::User,
        error::ApiError,
        problem::{Problem, ProblemKind},
        time::Time,
    },
    background::run_to_end,
    store::{Authority, CredentialId, Store, StoreError},
};
use rate_limits::{DenialLog, RateLimiter};
use std::{future::Future, net::IpAddr, time::Duration};
use throttle::Throttle;
use tokio::sync::watch;

/// Refreshes per second and user. Each one leaves an audit event.
const REFRESHES_PER_SECOND: u32 = 2;
/// First registrations from one address: a burst, since a rack of machines starts together, then one per
/// second, so that the holder of a key can't fill the list of nodes.
const NEW_NODES_BURST: u32 = 64;
const NEW_NODES_PER_SECOND: u32 = 1;
/// Lifetime of an access token.
const ACCESS_TOKEN_LIFETIME: Duration = Duration::from_mins(15);

/// Authenticated user.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user.
    pub user: User,
    /// Session of the access token.
    pub session: SessionId,
}

impl Caller {
    /// Audit event of this caller, to be stored with the change that it is about.
    pub fn audit_event(&self, action: AuditAction, origin: &RequestOrigin) -> AuditEvent {
        AuditEvent::new(action, Time::now(), Some(origin)).by(self.user.id, &self.user.handle)
    }

    /// Rights that a write checks again in its transaction.
    pub fn authority(&self) -> Authority {
        Authority {
            credential: CredentialId::Session(self.session),
            user: self.user.id,
            admin: false,
        }
    }

    /// Owner of the tasks that this caller may see: the caller, or any (`None`) for an admin.
    pub fn visible_owner(&self) -> Option<UserId> {
        (!self.user.is_admin).then_some(self.user.id)
    }
}

/// Identity of users and nodes: the one door of this room.
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
    /// Notifies that sessions have ended.
    revoked: watch::Sender<()>,
}

impl Identity {
    /// Identity over this store, with these keys. Each user may send `rate` requests per second; 0 is no
    /// limit.
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

    /// Authenticates a user by an access token. Fails with 401 where the token is invalid or its session has
    /// ended, and with 429 above the user's rate.
    pub async fn caller(&self, bearer: Option<&str>) -> Result<Caller, ApiError> {
        let token = bearer.ok_or_else(|| {
            Problem::unauthorized(
                "log in first (POST /v1/auth/login) and send Authorization: Bearer <token>",
            )
        })?;
        let invalid = || {
            Problem::unauthorized(
                "the access token is invalid or has expired; refresh it or log in again",
            )
        };
        let (user, session) = tokens::check_access(&self.keys, token).ok_or_else(invalid)?;
        self.requests.admit(user)?;
        let user = self
            .store
            .session_user(session, user, Time::now())
            .await?
            .ok_or_else(invalid)?;
        tracing::Span::current().record("user", &user.handle);
        Ok(Caller { user, session })
    }

    /// Authenticates an admin. A denial leaves an audit event.
    pub async fn admin(
        &self,
        bearer: Option<&str>,
        action: AuditAction,
        origin: &RequestOrigin,
    ) -> Result<Caller, ApiError> {
        let caller = self.caller(bearer).await?;
        if caller.user.is_admin {
            return Ok(caller);
        }
        let problem = Problem::new(
            ProblemKind::Forbidden,
            "only an admin may do this; ask an admin, or log in as one",
        );
        if self.denials.record(caller.user.id, action) {
            let event = caller.audit_event(action, origin).refused(&problem);
            self.record_audit(event).await?;
        }
        Err(problem.into())
    }

    /// Whether a caller's session is still active; `false` also where the store can't be read. To be asked
    /// again after each notification of [`revocations`](Self::revocations).
    pub async fn is_session_active(&self, caller: &Caller) -> bool {
        let (session, user) = (caller.session, caller.user.id);
        let found = self.store.session_user(session, user, Time::now()).await;
        matches!(found, Ok(Some(_)))
    }

    /// Notifications that sessions have ended.
    pub fn revocations(&self) -> watch::Receiver<()> {
        self.revoked.subscribe()
    }

    /// Runs a write that may end sessions, and notifies of it. Both happen even if the caller hangs up.
    async fn write_and_notify<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        has_ended: fn(&T) -> bool,
    ) -> Result<T, ApiError> {
        let revoked = self.revoked.clone();
        let work = async move {
            let outcome = write.await?;
            if has_ended(&outcome) {
                revoked.send_replace(());
            }
            Ok(outcome)
        };
        let work = run_to_end("session_write", work);
        work.await.map_err(ApiError::internal)?
    }

    /// Stores an audit event that belongs to no other write.
    pub async fn record_audit(&self, event: AuditEvent) -> Result<(), ApiError> {
        Ok(self.store.audit_add(event).await?)
    }
}
