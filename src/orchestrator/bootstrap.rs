//! The first start: an admin, and what to tell the operator, once.

use super::StartError;
use crate::{
    api::time::Time,
    identity::{MIN_PASSWORD_CHARS, hash_password, random_secret},
    store::{NewUser, Store},
};
use std::{
    fmt,
    net::{IpAddr, SocketAddr, UdpSocket},
};
use zeroize::Zeroizing;

/// The first admin's handle.
pub(super) const ADMIN: &str = "admin";

/// What only this start knows: secrets that were made by it, and how a node joins.
pub struct Welcome {
    /// The admin's password, when we made it.
    pub admin_password: Option<Zeroizing<String>>,
    /// The pre-shared key, when we made it.
    pub psk: Option<Zeroizing<String>>,
    /// How nodes call us; `None` where only this machine can.
    pub join_url: Option<String>,
}

impl fmt::Display for Welcome {
    /// For stdout, never for the log: it shows secrets, once. An operator's own are not repeated.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(password) = &self.admin_password {
            writeln!(f, "\nThis was made for you and is shown only now:\n")?;
            writeln!(f, "  user      {ADMIN}")?;
            writeln!(f, "  password  {}\n", password.as_str())?;
            writeln!(f, "  log in    cynode login --handle {ADMIN}")?;
        }
        let Some(url) = &self.join_url else {
            return writeln!(
                f,
                "\nOnly this machine can join; for others, listen with --control-listen 0.0.0.0:12082.\n"
            );
        };
        let psk = match &self.psk {
            Some(psk) => format!("--psk {}", psk.as_str()),
            None => "--psk-file FILE".to_owned(),
        };
        writeln!(
            f,
            "\nJoin another machine:\n\n  cynode node --orchestrator {url} {psk}\n"
        )
    }
}

/// Makes the admin when there is no user yet; the password, when it was made too.
pub(super) async fn first_admin(
    store: &Store,
    given: Option<Zeroizing<String>>,
) -> Result<Option<Zeroizing<String>>, StartError> {
    if store.user_any().await? {
        return Ok(None);
    }
    if given
        .as_ref()
        .is_some_and(|password| password.chars().count() < MIN_PASSWORD_CHARS)
    {
        let text = format!(
            "the admin's password is shorter than {MIN_PASSWORD_CHARS} characters; choose a longer one"
        );
        return Err(StartError::Setting(text));
    }
    let made = given.is_none().then(random_secret);
    let password = given.or_else(|| made.clone()).unwrap_or_else(random_secret);
    let password_hash = tokio::task::spawn_blocking(move || hash_password(&password))
        .await
        .map_err(|error| StartError::Setting(error.to_string()))?
        .map_err(|error| {
            StartError::Setting(format!("the admin's password could not be hashed: {error}"))
        })?;
    let admin = NewUser {
        handle: ADMIN.to_owned(),
        password_hash,
        is_admin: true,
    };
    store.user_create(admin, Time::now()).await?;
    Ok(made)
}

/// The URL in the join line: the operator's, or the address of the interface with the default route.
/// None when we listen where no other machine can call.
pub(super) fn join_url(public_url: Option<&str>, control: SocketAddr) -> Option<String> {
    if let Some(url) = public_url {
        return Some(url.trim_end_matches('/').to_owned());
    }
    if control.ip().is_loopback() {
        return None;
    }
    let ip = if control.ip().is_unspecified() {
        reachable_address()?
    } else {
        control.ip()
    };
    Some(format!("http://{}", SocketAddr::new(ip, control.port())))
}

/// The address that this machine would use to reach others. Connecting a datagram socket asks the
/// routing table and sends nothing; the target is one that is reserved for documentation.
fn reachable_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}
