//! First start: the first admin, and the banner that shows generated secrets once.

use super::{StartError, scheme};
use crate::{
    api::{
        audit::{AuditAction, AuditEvent},
        time::Time,
        users::check_password,
    },
    identity::hash_password,
    secrets::random_secret,
    store::{NewUser, Store},
    tls::Pin,
};
use std::{
    fmt,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
};
use zeroize::Zeroizing;

/// Handle of the first admin.
pub(super) const ADMIN: &str = "admin";

/// Text for the operator at a start: secrets that this start generated, and the next commands.
pub struct Banner {
    /// Password of the admin, if it was generated.
    pub admin_password: Option<Zeroizing<String>>,
    /// Pre-shared key, if it was generated.
    pub psk: Option<Zeroizing<String>>,
    /// File of the pre-shared key, if it is in the data directory.
    pub psk_file: Option<PathBuf>,
    /// Address at which users log in.
    pub gateway: SocketAddr,
    /// Address at which nodes register.
    pub control: SocketAddr,
    /// URL at which nodes reach this orchestrator.
    pub join: JoinUrl,
    /// Pin of the gateway, where it is encrypted.
    pub gateway_pin: Option<Pin>,
    /// Pin of the control plane, where it is encrypted.
    pub control_pin: Option<Pin>,
    /// Whether this process also runs a node.
    pub has_node: bool,
}

impl Banner {
    /// Login command, if the password was generated.
    fn credentials(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(password) = &self.admin_password else {
            return Ok(());
        };
        writeln!(f, "\nGenerated credentials, shown only this once:\n")?;
        writeln!(f, "  user      {ADMIN}")?;
        writeln!(f, "  password  {}\n", password.as_str())?;
        writeln!(
            f,
            "  log in    cynode login --handle {ADMIN} --gateway-url {}://{}{}",
            scheme(self.gateway_pin.is_some()),
            self.gateway,
            pin_flag(self.gateway_pin.as_ref())
        )
    }
}

/// Flag by which a command recognizes a listener with this pin, after a space.
fn pin_flag(pin: Option<&Pin>) -> String {
    pin.map(|pin| format!(" --pin {pin}")).unwrap_or_default()
}

impl fmt::Display for Banner {
    /// Text for stdout, never for the log: it shows secrets. Secrets of the operator's own are not shown.
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
                "another machine (replace THIS-MACHINE by the name or address at which it reaches this one, or set --public-url)".to_owned(),
                format!(
                    "{}://THIS-MACHINE:{port}",
                    scheme(self.control_pin.is_some())
                ),
            ),
        };
        let pin = pin_flag(self.control_pin.as_ref());
        writeln!(f, "\nJoin {whom}:\n")?;
        // Through stdin the key appears in no process list, and needs no file on the other machine.
        match &self.psk {
            Some(psk) => writeln!(
                f,
                "  echo {} | cynode node --orchestrator {url}{pin} --psk-file -\n",
                psk.as_str()
            )?,
            None => writeln!(
                f,
                "  cynode node --orchestrator {url}{pin} --psk-file FILE\n"
            )?,
        }
        match &self.psk_file {
            Some(file) => writeln!(f, "The pre-shared key is stored in {}.\n", file.display()),
            None => Ok(()),
        }
    }
}

/// First admin, to be created by this start.
pub(super) struct FirstAdmin {
    password: Zeroizing<String>,
    /// Whether the password was generated, so that it has to be shown.
    is_generated: bool,
}

impl FirstAdmin {
    /// First admin, with the `given` password or a generated one. `None` if there are users already.
    pub(super) async fn plan(
        store: &Store,
        given: Option<Zeroizing<String>>,
    ) -> Result<Option<Self>, StartError> {
        if store.user_any().await? {
            if given.is_some() {
                tracing::warn!("the admin password was ignored: there are users already");
            }
            return Ok(None);
        }
        let is_generated = given.is_none();
        let password = given.unwrap_or_else(random_secret);
        check_password("/password", &password).map_err(|problem| {
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

    /// Password, if it was generated.
    pub(super) fn generated_password(&self) -> Option<Zeroizing<String>> {
        self.is_generated.then(|| self.password.clone())
    }

    /// Stores the first admin.
    pub(super) async fn create(self, store: &Store) -> Result<(), StartError> {
        let password = self.password;
        let password_hash = tokio::task::spawn_blocking(move || hash_password(&password))
            .await
            .map_err(|error| StartError::Setting(error.to_string()))?
            .map_err(|error| {
                StartError::Setting(format!("the admin's password was not hashed: {error}"))
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

/// URL at which nodes of other machines join.
pub enum JoinUrl {
    /// URL that other machines reach.
    Reachable(String),
    /// URL on loopback, which only this machine reaches.
    Loopback(String),
    /// Unknown: the control plane listens on all addresses, but none of them is known.
    Unknown,
}

impl JoinUrl {
    /// URL of --public-url, or else with the address of the interface of the default route.
    pub(super) fn detect(public_url: Option<&str>, control: SocketAddr, scheme: &str) -> Self {
        if let Some(url) = public_url {
            return Self::Reachable(url.trim_end_matches('/').to_owned());
        }
        if control.ip().is_loopback() {
            return Self::Loopback(format!("{scheme}://{control}"));
        }
        let ip = if control.ip().is_unspecified() {
            default_route_address()
        } else {
            Some(control.ip())
        };
        ip.map_or(Self::Unknown, |ip| {
            Self::Reachable(format!(
                "{scheme}://{}",
                SocketAddr::new(ip, control.port())
            ))
        })
    }
}

/// Address of the interface of the default route. Connecting a datagram socket only looks it up in the
/// routing table and sends nothing; the target address is reserved for documentation.
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}
