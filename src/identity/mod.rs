//! Identity: users with passwords and tokens, nodes with a pre-shared key and tokens, and the token that the
//! orchestrator shows to each node's Worker API.
//!
//! Users call with the access token of a login or with an API key ([`Credential`]); [`Access`] says which of them a
//! call accepts.
//!
//! User tokens and node tokens have separate keys and audiences, so that neither passes for the other. An
//! access token names its session and is valid only while that session is active, which is looked up on
//! each call: a logout takes effect immediately.

mod api_keys;
mod audit;
mod caller;
mod error;
mod join_tokens;
mod keys;
mod nodes;
mod own_password;
mod password;
mod rate_limits;
mod secret_keys;
mod secrets;
mod sessions;
mod throttle;
mod tokens;
mod users;

pub use caller::{Access, Caller, Credential};
pub use keys::Keys;
pub use nodes::NodeCredential;
pub use password::hash as hash_password;
pub use secrets::SecretError;
pub use users::UserAction;

use crate::{
    api::{
        UserId,
        api_keys::KEY_PREFIX,
        audit::{AuditAction, AuditEvent, RequestOrigin},
        error::ApiError,
        problem::{Problem, ProblemKind},
        time::Time,
    },
    background::run_to_end,
    store::{Store, StoreError},
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
/// Interval in which a long call checks that its session has not expired.
const RECHECK_INTERVAL: Duration = Duration::from_mins(1);
/// Lifetime of an access token.
const ACCESS_TOKEN_LIFETIME: Duration = Duration::from_mins(15);

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
    /// Notifies that sessions or keys have ended.
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

    /// Authenticates a user by an access token or an API key, for a call that accepts `access`. Fails with 401 where
    /// the token is invalid or its session has ended, with 403 where the key is not for the call, and with 429 above
    /// the user's rate.
    pub async fn caller(
        &self,
        token: Option<&str>,
        access: Access,
        origin: &RequestOrigin,
    ) -> Result<Caller, ApiError> {
        let token = token.ok_or_else(|| {
            Problem::unauthorized(
                "log in first (POST /v1/auth/login) and send Authorization: Bearer <token>; an API key can be sent so, too",
            )
        })?;
        let caller = if token.starts_with(KEY_PREFIX) {
            self.key_caller(token).await?
        } else {
            self.session_caller(token).await?
        };
        tracing::Span::current().record("user", &caller.user.handle);
        self.check_access(&caller, access, origin).await?;
        Ok(caller)
    }

    /// Caller with a valid access token.
    async fn session_caller(&self, token: &str) -> Result<Caller, ApiError> {
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
        let credential = Credential::Session(session);
        Ok(Caller { user, credential })
    }

    /// Counts a request that a node passes on for a job of `user`. Fails with 429 above the user's rate.
    pub fn admit_job_request(&self, user: UserId) -> Result<(), Problem> {
        self.requests.admit(user)
    }

    /// Authenticates an admin. A denial leaves an audit event.
    pub async fn admin(
        &self,
        token: Option<&str>,
        access: Access,
        action: AuditAction,
        origin: &RequestOrigin,
    ) -> Result<Caller, ApiError> {
        let caller = self.caller(token, access, origin).await?;
        if caller.user.is_admin {
            return Ok(caller);
        }
        let problem = Problem::new(
            ProblemKind::Forbidden,
            "only an admin may do this; ask an admin, or log in as one",
        );
        self.deny(&caller, action, problem, origin).await
    }

    /// Refuses an action with a problem, and records that, unless it was recorded lately.
    async fn deny<T>(
        &self,
        caller: &Caller,
        action: AuditAction,
        problem: Problem,
        origin: &RequestOrigin,
    ) -> Result<T, ApiError> {
        if self.denials.record(caller.user.id, action) {
            let event = caller.audit_event(action, origin).refused(&problem);
            self.record_audit(event).await?;
        }
        Err(problem.into())
    }

    /// Whether a caller's session or key is still valid; `false` also where the store can't be read.
    async fn is_valid(&self, caller: &Caller) -> bool {
        let now = Time::now();
        match &caller.credential {
            Credential::Session(session) => {
                let found = self.store.session_user(*session, caller.user.id, now).await;
                matches!(found, Ok(Some(_)))
            }
            Credential::Key(key) => {
                let found = self.store.api_key_is_valid(key.id, now).await;
                matches!(found, Ok(true))
            }
        }
    }

    /// Waits until a caller's session or key has ended. `revocations` has to be subscribed before the caller is
    /// authenticated, so that no end is missed.
    pub async fn ended(&self, caller: &Caller, mut revocations: watch::Receiver<()>) {
        loop {
            // No revocation announces that a session or a key expires.
            let expiry = caller.key().and_then(|key| key.expires_at);
            let left = expiry.map_or(Duration::MAX, |end| end.since(Time::now()));
            tokio::select! {
                // The sender lives in `self`.
                _ = revocations.changed() => {}
                () = tokio::time::sleep(left.min(RECHECK_INTERVAL)) => {}
            }
            if !self.is_valid(caller).await {
                return;
            }
        }
    }

    /// Notifications that sessions or keys have ended, for [`ended`](Self::ended).
    pub fn revocations(&self) -> watch::Receiver<()> {
        self.revoked.subscribe()
    }

    /// Runs a write that may end sessions or keys, and notifies of it. Both happen even if the caller hangs up.
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

/// First `limit` entries, and whether there are more.
fn page<T>(mut entries: Vec<T>, limit: u32) -> (Vec<T>, bool) {
    let has_more = entries.len() > limit as usize;
    entries.truncate(limit as usize);
    (entries, has_more)
}
