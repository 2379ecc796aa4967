//! Stored logins: `$XDG_CONFIG_HOME/cynode/credentials.json`, mode 0600.
//!
//! Several processes of one user share the file. A refresh token is valid for one use, so a process that
//! refreshes holds a lock and first looks whether another one was faster.

use crate::{
    api::auth::Tokens,
    data_dir::{make_private_dir, write_private},
    exit::{Exit, Failure},
    files::{STALE_AGE, remove_temporary_files},
    http::request::parse_json,
    tls::{Pin, Trust},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

/// Login at one gateway.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredLogin {
    /// User name.
    pub handle: String,
    /// Bearer token for calls.
    pub access_token: String,
    /// Token for the next pair of tokens.
    pub refresh_token: String,
}

/// Trust in a gateway, for later commands.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct KnownServer {
    /// Pin of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Authorities to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl KnownServer {
    fn of(trust: &Trust) -> Self {
        let ca_file = trust.ca_file().map(|path| {
            // Later commands may run in other directories.
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
        });
        Self {
            pin: trust.pin().cloned(),
            ca_file,
        }
    }
}

/// Logins of this user.
#[derive(Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Gateway URL of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Logins by gateway URL.
    #[serde(default)]
    pub logins: BTreeMap<String, StoredLogin>,
    /// Trust in gateways, by URL. It outlives a session that ends, but not a logout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<String, KnownServer>,
}

/// Lock that keeps other processes from changing the file.
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
        .ok_or_else(|| Failure::usage("neither XDG_CONFIG_HOME nor HOME is set, so a login can't be stored; set one of them"))
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

/// What is remembered of the keys of gateways; nothing where there is no directory to keep it.
pub fn known_servers() -> Result<BTreeMap<String, KnownServer>, Failure> {
    match directory() {
        Ok(_) => load().map(|credentials| credentials.servers),
        Err(_) => Ok(BTreeMap::new()),
    }
}

/// Stored logins; none when there is no file.
pub fn load() -> Result<Credentials, Failure> {
    let path = directory()?.join("credentials.json");
    match fs::read(&path) {
        Ok(bytes) => parse_json(&bytes).map_err(|_| {
            let text = format!("{} is damaged; delete it and log in again", path.display());
            Failure::new(Exit::Internal, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Credentials::default()),
        Err(error) => Err(Failure::internal(format!("{}: {error}", path.display()))),
    }
}

fn save(credentials: &Credentials, _: &CredentialsLock) -> Result<(), Failure> {
    let bytes = serde_json::to_vec_pretty(credentials).map_err(Failure::internal)?;
    let directory = directory()?;
    // A killed command may have left tokens there.
    remove_temporary_files(&directory, STALE_AGE);
    Ok(write_private(&directory.join("credentials.json"), &bytes)?)
}

fn login_of(handle: &str, tokens: Tokens) -> StoredLogin {
    StoredLogin {
        handle: handle.to_owned(),
        access_token: tokens.access_token,
        refresh_token: tokens.refresh_token,
    }
}

/// Stores a login and the trust in its gateway, and makes the gateway the current one.
pub fn store(gateway: &str, handle: &str, tokens: Tokens, trust: &Trust) -> Result<(), Failure> {
    let locked = lock()?;
    let mut credentials = load()?;
    credentials.current = Some(gateway.to_owned());
    credentials
        .logins
        .insert(gateway.to_owned(), login_of(handle, tokens));
    credentials
        .servers
        .insert(gateway.to_owned(), KnownServer::of(trust));
    credentials
        .servers
        .retain(|_, server| server.pin.is_some() || server.ca_file.is_some());
    save(&credentials, &locked)
}

/// Removes a login, and the trust in its gateway; returns the login when there was one.
pub fn remove(gateway: &str) -> Result<Option<StoredLogin>, Failure> {
    let locked = lock()?;
    let mut credentials = load()?;
    let login = credentials.logins.remove(gateway);
    credentials.servers.remove(gateway);
    save(&credentials, &locked)?;
    Ok(login)
}

/// Login with a newer access token than `stale`: one that another process stored, or the one that `refresh`
/// gets for the refresh token. The outer `Err` of `refresh` is a call without an answer: a server that is not trusted or
/// not reached says nothing about the session, so the login stays.
pub fn renew(
    gateway: &str,
    stale: &str,
    refresh: impl FnOnce(&str) -> Result<Result<Tokens, Failure>, Failure>,
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
    let renewed = match refresh(&login.refresh_token)? {
        Ok(tokens) => login_of(&login.handle, tokens),
        Err(failure) => {
            if failure.exit == Exit::NotAllowed {
                // The session has ended, for other terminals, too.
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

/// Failure of a command that needs a login.
pub fn not_logged_in(gateway: &str) -> Failure {
    let text = format!(
        "you are not logged in at {gateway}; log in with: cynode login --gateway-url {gateway}"
    );
    Failure::new(Exit::NotAllowed, text)
}
