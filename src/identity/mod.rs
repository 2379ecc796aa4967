//! Who is calling: users by password and token, nodes by pre-shared key and token, the
//! orchestrator itself by a token that each node's Worker API is given.
//!
//! User tokens and node tokens have separate keys and audiences, so that neither passes for
//! the other. An access token names its session and is good only while that session lives,
//! which is looked up at each call: logout works at once.

mod keys;
mod password;
mod throttle;
mod tokens;

pub use keys::{Keys, random_secret};
pub use password::{MIN_PASSWORD_CHARS, hash as hash_password};

use crate::{
    api::{
        NodeId, SessionId,
        auth::{Tokens, User},
        problem::{Kind, Problem},
        time::Time,
    },
    digest::sha256_hex,
    errors,
    store::{RefreshOutcome, Store, StoreError},
};
use std::{net::IpAddr, time::Duration};
use subtle::ConstantTimeEq as _;
use throttle::{Key, Throttle};

/// How long an access token lives.
const ACCESS_LIFE: Duration = Duration::from_mins(15);
/// How long a session lives without a refresh.
const SESSION_LIFE: Duration = Duration::from_hours(24 * 30);

/// Longer ones are wrong without a look; they would only fill memory.
const MAX_HANDLE_BYTES: usize = 128;
const MAX_PASSWORD_BYTES: usize = 1024;

/// A user who showed a good access token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub user: User,
    /// By which login.
    pub session: SessionId,
}

/// The room's one door.
pub struct Identity {
    store: Store,
    keys: Keys,
    logins: Throttle,
    registrations: Throttle,
    hasher: password::Hasher,
}

/// A fault of the store is a 500, or 503 where an operator can act; its text goes to the log alone.
pub fn store_problem(error: StoreError) -> Problem {
    tracing::error!(error = errors::chain(&error), "the store failed");
    match error {
        StoreError::Commit(_) | StoreError::Closed => Problem::new(
            Kind::Unavailable,
            "the database takes no writes at present; the operator finds the reason in the orchestrator's log",
        ),
        _ => Problem::internal(),
    }
}

impl Identity {
    /// Over this store, with these keys.
    pub fn new(store: Store, keys: Keys) -> Self {
        Self {
            store,
            keys,
            logins: Throttle::default(),
            registrations: Throttle::default(),
            hasher: password::Hasher::default(),
        }
    }

    /// Opens a session for the right password.
    pub async fn login(
        &self,
        handle: String,
        password: String,
        from: IpAddr,
    ) -> Result<Tokens, Problem> {
        if handle.len() > MAX_HANDLE_BYTES || password.len() > MAX_PASSWORD_BYTES {
            return Err(Problem::unauthorized(
                "the handle or the password is wrong; try again",
            ));
        }
        let attempt = self
            .logins
            .admit(vec![Key::address(from), Key::handle(from, &handle)])?;
        let found = self
            .store
            .user_by_handle(handle)
            .await
            .map_err(store_problem)?;
        let user = self.hasher.check(found, password).await?;
        // One answer for an unknown handle, a wrong password and a disabled user.
        let Some(user) = user.filter(|user| user.is_active) else {
            return Err(Problem::unauthorized(
                "the handle or the password is wrong; try again",
            ));
        };
        attempt.succeed();
        self.open_session(user).await
    }

    /// Opens a session without a password, for a process that has the data directory in its hands.
    pub async fn open_session(&self, user: User) -> Result<Tokens, Problem> {
        let refresh = random_secret();
        let now = Time::now();
        let session = self
            .store
            .session_open(user.id, sha256_hex(&refresh), now, now.plus(SESSION_LIFE))
            .await
            .map_err(store_problem)?;
        self.tokens(&user, session, &refresh)
    }

    /// Trades a refresh token for new tokens, once.
    pub async fn refresh(&self, token: &str) -> Result<Tokens, Problem> {
        let refresh = random_secret();
        let now = Time::now();
        let outcome = self
            .store
            .session_refresh(
                sha256_hex(token),
                sha256_hex(&refresh),
                now,
                now.plus(SESSION_LIFE),
            )
            .await
            .map_err(store_problem)?;
        match outcome {
            RefreshOutcome::Rotated { user, session } => self.tokens(&user, session, &refresh),
            RefreshOutcome::Reused => {
                tracing::warn!("a refresh token was used twice; its session is revoked");
                Err(Problem::unauthorized(
                    "this refresh token was used before, so its session was ended; log in again",
                ))
            }
            RefreshOutcome::Dead => Err(Problem::unauthorized(
                "the refresh token is not valid any more; log in again",
            )),
        }
    }

    /// Ends the caller's session, and that of `refresh_token` where it is another one of theirs.
    pub async fn logout(
        &self,
        caller: &Caller,
        refresh_token: Option<String>,
    ) -> Result<(), Problem> {
        let other = refresh_token.as_deref().map(sha256_hex);
        self.store
            .session_revoke(caller.session, caller.user.id, other, Time::now())
            .await
            .map_err(store_problem)
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

    /// Whether this is the pre-shared key.
    pub fn check_psk(&self, psk: &str, from: IpAddr) -> Result<(), Problem> {
        let attempt = self.registrations.admit(vec![Key::address(from)])?;
        // Equal lengths for a comparison in constant time.
        let (shown, ours) = (sha256_hex(psk), sha256_hex(self.keys.psk()));
        if !bool::from(shown.as_bytes().ct_eq(ours.as_bytes())) {
            return Err(Problem::unauthorized(
                "the pre-shared key is wrong; the orchestrator keeps it in keys/psk of its data directory",
            ));
        }
        attempt.succeed();
        Ok(())
    }

    /// The pre-shared key itself, for a node in the same process.
    pub fn psk(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(self.keys.psk().to_owned())
    }

    /// A token for a node, and when it ends.
    pub fn node_token(&self, node: NodeId) -> Result<(String, Time), Problem> {
        tokens::issue_node(&self.keys, node)
    }

    /// Which node shows this token.
    pub fn node(&self, bearer: Option<&str>) -> Result<NodeId, Problem> {
        bearer
            .and_then(|token| tokens::check_node(&self.keys, token))
            .ok_or_else(|| {
                Problem::unauthorized(
                    "the node's token is missing, not valid or has expired; register again",
                )
            })
    }

    /// The token that we show at this node's Worker API.
    pub fn worker_token(&self, node: NodeId) -> String {
        tokens::worker_bearer(&self.keys, node)
    }

    fn tokens(&self, user: &User, session: SessionId, refresh: &str) -> Result<Tokens, Problem> {
        Ok(Tokens {
            access_token: tokens::issue_access(&self.keys, user.id, session)?,
            refresh_token: refresh.to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: ACCESS_LIFE.as_secs(),
        })
    }
}
