//! Passwords: argon2id with 19 MiB and 2 passes (OWASP's choice), stored as PHC strings.

use crate::{
    api::{auth::User, problem::Problem},
    store::UserRecord,
};
use argon2::{
    Argon2,
    password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString},
};
use std::sync::{Arc, LazyLock};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Shortest password that is accepted, in characters.
pub const MIN_PASSWORD_CHARS: usize = 12;
/// Hashes at the same time: a storm of logins may take so many cores and so many times 19 MiB.
const PARALLEL: usize = 2;

/// Checked in place of the hash that an unknown handle doesn't have, so that it takes as long.
static NOBODY: LazyLock<String> =
    LazyLock::new(|| hash("no password has this hash").unwrap_or_default());

/// Hashes a password.
pub fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| argon2::password_hash::Error::Crypto)?;
    let salt = SaltString::encode_b64(&salt)?;
    Ok(Argon2::default()
        .hash_password(password.as_bytes(), &salt)?
        .to_string())
}

/// Checks passwords away from the threads that serve requests.
pub(super) struct Hasher(Arc<Semaphore>);

impl Default for Hasher {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PARALLEL)))
    }
}

impl Hasher {
    /// The user, when there is one and the password is theirs.
    pub(super) async fn check(
        &self,
        found: Option<UserRecord>,
        password: String,
    ) -> Result<Option<User>, Problem> {
        let password = Zeroizing::new(password);
        let permit = Arc::clone(&self.0)
            .acquire_owned()
            .await
            .map_err(|_| Problem::internal())?;
        let check = move || {
            let hash = found
                .as_ref()
                .map_or(NOBODY.as_str(), |record| &record.password_hash);
            let right = PasswordHash::new(hash).is_ok_and(|hash| {
                Argon2::default()
                    .verify_password(password.as_bytes(), &hash)
                    .is_ok()
            });
            drop(permit);
            found.filter(|_| right).map(|record| record.user)
        };
        tokio::task::spawn_blocking(check)
            .await
            .map_err(|_| Problem::internal())
    }
}
