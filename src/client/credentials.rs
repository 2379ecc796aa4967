//! `credentials.json`: who is logged in where.
//!
//! Several processes of one user share the file. A refresh token is good for one use, so
//! whoever refreshes holds a lock and looks first whether another one was faster.

use crate::{
    api::auth::Tokens,
    data_dir::{make_private_dir, write_private},
    exit::{Exit, Failure},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

/// One login.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredLogin {
    /// As whom.
    pub handle: String,
    /// For calls.
    pub access_token: String,
    /// For the next pair of tokens.
    pub refresh_token: String,
}

/// All logins of this user.
#[derive(Default, Serialize, Deserialize)]
pub struct Credentials {
    /// The gateway that is meant when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By gateway.
    #[serde(default)]
    pub logins: BTreeMap<String, StoredLogin>,
}

/// Keeps other processes from changing the file.
struct CredentialsLock {
    _file: File,
}

fn directory() -> Result<PathBuf, Failure> {
    let from = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    from("XDG_CONFIG_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".config")))
        .map(|path| path.join("cynode"))
        .ok_or_else(|| Failure::usage("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for a login; set one"))
}

fn lock() -> Result<CredentialsLock, Failure> {
    let directory = directory()?;
    make_private_dir(&directory)?;
    let path = directory.join("credentials.lock");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    file.lock()?;
    Ok(CredentialsLock { _file: file })
}

/// What is stored; nothing when there is no file.
pub fn load() -> Result<Credentials, Failure> {
    let path = directory()?.join("credentials.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            let text = format!(
                "{} is damaged ({error}); delete it and log in again",
                path.display()
            );
            Failure::new(Exit::Internal, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Credentials::default()),
        Err(error) => Err(Failure::internal(format!("{}: {error}", path.display()))),
    }
}

fn save(credentials: &Credentials, _: &CredentialsLock) -> Result<(), Failure> {
    let bytes = serde_json::to_vec_pretty(credentials).map_err(Failure::internal)?;
    Ok(write_private(
        &directory()?.join("credentials.json"),
        &bytes,
    )?)
}

fn login_of(handle: &str, tokens: Tokens) -> StoredLogin {
    StoredLogin {
        handle: handle.to_owned(),
        access_token: tokens.access_token,
        refresh_token: tokens.refresh_token,
    }
}

/// Remembers a login, and that its gateway is the one that is meant from now on.
pub fn store(gateway: &str, handle: &str, tokens: Tokens) -> Result<(), Failure> {
    let locked = lock()?;
    let mut credentials = load()?;
    credentials.current = Some(gateway.to_owned());
    credentials
        .logins
        .insert(gateway.to_owned(), login_of(handle, tokens));
    save(&credentials, &locked)
}

/// Forgets a login; it, when there was one.
pub fn forget(gateway: &str) -> Result<Option<StoredLogin>, Failure> {
    let locked = lock()?;
    let mut credentials = load()?;
    let login = credentials.logins.remove(gateway);
    save(&credentials, &locked)?;
    Ok(login)
}

/// A login newer than `stale`: another process's, or what `refresh` gets for the refresh token.
pub fn renew(
    gateway: &str,
    stale: &str,
    refresh: impl FnOnce(&str) -> Result<Tokens, Failure>,
) -> Result<StoredLogin, Failure> {
    let locked = lock()?;
    let mut credentials = load()?;
    let login = credentials
        .logins
        .get(gateway)
        .cloned()
        .ok_or_else(|| not_logged_in(gateway))?;
    if login.access_token != stale {
        return Ok(login);
    }
    let renewed = match refresh(&login.refresh_token) {
        Ok(tokens) => login_of(&login.handle, tokens),
        Err(failure) => {
            if failure.exit == Exit::NotAllowed {
                // It is of no use any more, here nor in another terminal.
                credentials.logins.remove(gateway);
                save(&credentials, &locked)?;
            }
            return Err(failure);
        }
    };
    credentials
        .logins
        .insert(gateway.to_owned(), renewed.clone());
    save(&credentials, &locked)?;
    Ok(renewed)
}

/// What to do about it.
pub fn not_logged_in(gateway: &str) -> Failure {
    let text = format!(
        "you are not logged in at {gateway}; log in with: cynode login --gateway-url {gateway}"
    );
    Failure::new(Exit::NotAllowed, text)
}
