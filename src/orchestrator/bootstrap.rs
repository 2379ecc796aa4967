//! The first start: an admin, and what to tell the operator, once.

use super::StartError;
use crate::{
    api::{
        audit::{AuditAction, AuditEvent},
        time::Time,
        users::check_password,
    },
    identity::hash_password,
    secrets::random_secret,
    store::{NewUser, Store},
};
use std::{
    fmt,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
};
use zeroize::Zeroizing;

/// The first admin's handle.
pub(super) const ADMIN: &str = "admin";

/// What only this start knows: secrets that were made by it, and how to go on.
pub struct Banner {
    /// The admin's password, when we made it.
    pub admin_password: Option<Zeroizing<String>>,
    /// The pre-shared key, when we made it.
    pub psk: Option<Zeroizing<String>>,
    /// Where the pre-shared key is kept, when it is ours.
    pub psk_file: Option<PathBuf>,
    /// Where users log in.
    pub gateway: SocketAddr,
    /// Where nodes register.
    pub control: SocketAddr,
    /// How nodes call us.
    pub join: JoinUrl,
    /// Whether this machine has a node already.
    pub has_node: bool,
}

impl Banner {
    /// How to log in, where only we know that.
    fn credentials(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(password) = &self.admin_password else {
            return Ok(());
        };
        writeln!(f, "\nThis was made for you and is shown only now:\n")?;
        writeln!(f, "  user      {ADMIN}")?;
        writeln!(f, "  password  {}\n", password.as_str())?;
        writeln!(
            f,
            "  log in    cynode login --handle {ADMIN} --gateway-url http://{}",
            self.gateway
        )
    }
}

impl fmt::Display for Banner {
    /// For stdout, never for the log: it shows secrets, once. An operator's own are not repeated.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.credentials(f)?;
        let port = self.control.port();
        let (whom, url) = match &self.join {
            JoinUrl::Reachable(url) => ("another machine".to_owned(), url.clone()),
            JoinUrl::Loopback(_) if self.has_node => return writeln!(f),
            JoinUrl::Loopback(url) => (
                format!("this machine (for others, listen with --control-listen 0.0.0.0:{port})"),
                url.clone(),
            ),
            JoinUrl::Unknown => (
                "another machine, which knows this one by a name or address (--public-url says it here)".to_owned(),
                format!("http://THIS-MACHINE:{port}"),
            ),
        };
        writeln!(f, "\nJoin {whom}:\n")?;
        // On stdin the key shows in no list of processes, and needs no file on a machine that has none yet.
        match &self.psk {
            Some(psk) => writeln!(
                f,
                "  echo {} | cynode node --orchestrator {url} --psk-file -\n",
                psk.as_str()
            )?,
            None => writeln!(f, "  cynode node --orchestrator {url} --psk-file FILE\n")?,
        }
        match &self.psk_file {
            Some(file) => writeln!(f, "The pre-shared key is kept in {}.\n", file.display()),
            None => Ok(()),
        }
    }
}

/// An admin that is yet to be made.
pub(super) struct FirstAdmin {
    password: Zeroizing<String>,
    /// Whether we made the password, and have to tell it.
    is_generated: bool,
}

impl FirstAdmin {
    /// None when there is a user already.
    pub(super) async fn plan(
        store: &Store,
        given: Option<Zeroizing<String>>,
    ) -> Result<Option<Self>, StartError> {
        if store.user_any().await? {
            if given.is_some() {
                tracing::warn!(
                    "there are users already, so the admin's password that was given counts for nothing"
                );
            }
            return Ok(None);
        }
        let is_generated = given.is_none();
        let password = given.unwrap_or_else(random_secret);
        check_password(&password).map_err(|problem| {
            let text = format!(
                "the admin's {}; put it into --admin-password-file (or CYNODE_ADMIN_PASSWORD)",
                problem.detail
            );
            StartError::Setting(text)
        })?;
        Ok(Some(Self {
            password,
            is_generated,
        }))
    }

    /// The password, when the operator doesn't know it.
    pub(super) fn generated_password(&self) -> Option<Zeroizing<String>> {
        self.is_generated.then(|| self.password.clone())
    }

    /// Stores the admin.
    pub(super) async fn create(self, store: &Store) -> Result<(), StartError> {
        let password = self.password;
        let password_hash = tokio::task::spawn_blocking(move || hash_password(&password))
            .await
            .map_err(|error| StartError::Setting(error.to_string()))?
            .map_err(|error| {
                StartError::Setting(format!("the admin's password could not be hashed: {error}"))
            })?;
        let admin = NewUser {
            handle: ADMIN.to_owned(),
            password_hash,
            email: None,
            is_admin: true,
        };
        let event = AuditEvent::new(AuditAction::UserCreate, Time::now(), None);
        store.user_create(admin, None, event).await?;
        Ok(())
    }
}

/// How another machine joins.
pub enum JoinUrl {
    /// At this URL.
    Reachable(String),
    /// Not at all: we listen on loopback, at this URL.
    Loopback(String),
    /// Somehow: we listen everywhere, and don't know how others call this machine.
    Unknown,
}

impl JoinUrl {
    /// The operator's URL, or the address of the interface with the default route.
    pub(super) fn detect(public_url: Option<&str>, control: SocketAddr) -> Self {
        if let Some(url) = public_url {
            return Self::Reachable(url.trim_end_matches('/').to_owned());
        }
        if control.ip().is_loopback() {
            return Self::Loopback(format!("http://{control}"));
        }
        let ip = if control.ip().is_unspecified() {
            default_route_address()
        } else {
            Some(control.ip())
        };
        ip.map_or(Self::Unknown, |ip| {
            Self::Reachable(format!("http://{}", SocketAddr::new(ip, control.port())))
        })
    }
}

/// The address that this machine would use to reach others. Connecting a datagram socket asks the
/// routing table and sends nothing; the target is one that is reserved for documentation.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}
