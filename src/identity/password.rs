//! Passwords: argon2id with 19 MiB and 2 passes (OWASP's choice), stored as PHC strings.
//!
//! A string names its parameters. A hash with lower costs than today's is replaced at the next login, when
//! the password is known.

use crate::{
    api::{
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    store::UserRecord,
};
use argon2::{
    Argon2, Params,
    password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString},
};
use std::sync::{Arc, LazyLock};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Maximum number of hashes at the same time; each takes a core and 19 MiB.
const MAX_CONCURRENT_HASHES: usize = 4;
/// Maximum number of hashes that wait; further ones are refused.
const MAX_WAITING_HASHES: usize = 256;

/// Hash that is checked for an unknown handle, so that the answer takes as long.
static UNKNOWN_USER_HASH: LazyLock<String> =
    LazyLock::new(|| hash("no user has this password").unwrap_or_default());

/// Hashes a password.
pub fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| argon2::password_hash::Error::Crypto)?;
    let salt = SaltString::encode_b64(&salt)?;
    Ok(Argon2::default()
        .hash_password(password.as_bytes(), &salt)?
        .to_string())
}

/// Whether a stored hash has lower costs than new ones.
fn is_weak(hash: &PasswordHash<'_>) -> bool {
    let today = Params::default();
    hash.algorithm.as_str() != "argon2id"
        || Params::try_from(hash).map_or(true, |made| {
            made.m_cost() < today.m_cost() || made.t_cost() < today.t_cost()
        })
}

/// Outcome of a check.
pub(super) enum PasswordCheck {
    /// The password is right.
    Right {
        /// Replacement for a stored hash whose costs are too low.
        rehashed: Option<String>,
    },
    /// The password is wrong, or there is no such user.
    Wrong,
}

/// Hasher that runs on blocking threads, a few at a time: half of the cores stay free for everything else,
/// however many users log in.
pub(super) struct Hasher {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Hasher {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Arc::new(Semaphore::new((cores / 2).clamp(1, MAX_CONCURRENT_HASHES))),
            waiting: Semaphore::new(MAX_WAITING_HASHES),
        }
    }
}

impl Hasher {
    /// Checks a user's password. Takes as long if there is no such user.
    pub(super) async fn check(
        &self,
        found: Option<UserRecord>,
        password: Zeroizing<String>,
    ) -> Result<PasswordCheck, ApiError> {
        self.run_blocking(move || {
            let known = found.as_ref().map(|record| record.password_hash.as_str());
            let Ok(stored) = PasswordHash::new(known.unwrap_or(&UNKNOWN_USER_HASH)) else {
                return PasswordCheck::Wrong;
            };
            let verified = Argon2::default().verify_password(password.as_bytes(), &stored);
            if verified.is_err() || known.is_none() {
                return PasswordCheck::Wrong;
            }
            let rehashed = is_weak(&stored).then(|| hash(&password).ok()).flatten();
            PasswordCheck::Right { rehashed }
        })
        .await
    }

    /// Hashes a new password.
    pub(super) async fn hash(&self, password: Zeroizing<String>) -> Result<String, ApiError> {
        self.run_blocking(move || hash(&password))
            .await?
            .map_err(|error| ApiError::internal(format!("the password was not hashed: {error}")))
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(waiting) = self.waiting.try_acquire() else {
            let text = "too many logins at the same time; try again in a second";
            return Err(Problem::new(ProblemKind::TooManyRequests, text)
                .retry_after(1)
                .into());
        };
        let permit = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(ApiError::internal)?;
        drop(waiting);
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(ApiError::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argon2::{Algorithm, Version};

    #[test]
    fn hash_with_lower_cost_is_weak() {
        let made = |memory, passes| {
            let params = Params::new(memory, passes, 1, None).unwrap();
            let salt = SaltString::encode_b64(&[7; 16]).unwrap();
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password(b"a password", &salt)
                .unwrap()
                .to_string()
        };
        let weak = |hash: &str| is_weak(&PasswordHash::new(hash).unwrap());
        let today = hash("a password").unwrap();
        assert!(
            today.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{today}"
        );
        assert!(!weak(&today));
        assert!(!weak(&made(20_000, 3)));
        assert!(weak(&made(19_456, 1)));
        assert!(weak(&made(8_192, 2)));
    }

    #[tokio::test]
    async fn full_waiting_list_is_refused() {
        let hasher = Hasher {
            running: Arc::new(Semaphore::new(0)),
            waiting: Semaphore::new(1),
        };
        let wait = hasher.run_blocking(|| ());
        let late = async {
            let error = hasher.run_blocking(|| ()).await.unwrap_err();
            let problem = error.problem();
            assert_eq!(
                (problem.kind, problem.retry_after),
                (ProblemKind::TooManyRequests, Some(1))
            );
            hasher.running.add_permits(1);
        };
        let (waited, ()) = tokio::join!(biased; wait, late);
        waited.unwrap();
    }
}
