//! Encryption of the listeners: which of them speak TLS, which certificate they show, and how it stays current.
//!
//! | `--tls` | control plane | gateway |
//! |---|---|---|
//! | not given | TLS | TLS where it listens beyond loopback |
//! | not given, in `dev` | TLS where it listens beyond loopback | same |
//! | `on`, or not given with `--tls-cert` | TLS | TLS |
//! | `off` | plain HTTP | plain HTTP |
//!
//! Nodes are set up once, by a command that bears the pin, so TLS costs them nothing. Programs of users on this machine
//! know no pin, and what they send does not leave the machine: so a gateway on loopback is plain, and so is all of `dev`.

use super::{Settings, StartError, scheme};
use crate::{
    data_dir::DataDir,
    http::server::{Shutdown, shutdown_requested},
    tls::{CertificateFiles, Pin, ServerTls},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

/// Time between checks whether the own certificate expires soon.
const RENEWAL_INTERVAL: Duration = Duration::from_hours(1);
/// Names that lead to this machine from itself.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Encryption that the operator chooses.
#[derive(Clone, Debug)]
pub enum TlsSettings {
    /// No choice: TLS where it is the default, with a certificate that the orchestrator makes of itself.
    Default,
    /// Plain HTTP at both listeners.
    Off,
    /// TLS at both listeners, with a certificate that the orchestrator makes of itself.
    Own,
    /// TLS at both listeners, with a certificate of the operator's.
    Files(CertificateFiles),
}

impl TlsSettings {
    /// Whether SIGHUP has the certificate read again.
    pub const fn is_reloadable(&self) -> bool {
        matches!(self, Self::Files(_))
    }
}

/// TLS of each listener; `None` for plain HTTP. Both show the same certificate.
pub(super) struct Encryption {
    /// TLS of the gateway, which offers HTTP/2: many of its clients are browsers and libraries that gain by it.
    pub(super) gateway: Option<ServerTls>,
    /// TLS of the control plane.
    pub(super) control: Option<ServerTls>,
}

impl Encryption {
    /// Certificate of the listeners that speak TLS; `None` where none does.
    pub(super) fn certificate(&self) -> Option<&ServerTls> {
        self.control.as_ref().or(self.gateway.as_ref())
    }

    /// Pin of the gateway, where it is encrypted.
    pub(super) fn gateway_pin(&self) -> Option<Pin> {
        self.gateway.as_ref().map(ServerTls::pin)
    }

    /// Pin of the control plane, where it is encrypted.
    pub(super) fn control_pin(&self) -> Option<Pin> {
        self.control.as_ref().map(ServerTls::pin)
    }
}

/// Listeners that speak TLS: the gateway, and the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Coverage {
    gateway: bool,
    control: bool,
}

impl Coverage {
    /// Coverage by these settings of an orchestrator that listens at these addresses; `has_node` in `dev`.
    fn of(tls: &TlsSettings, [gateway, control]: [SocketAddr; 2], has_node: bool) -> Self {
        let (gateway, control) = match tls {
            TlsSettings::Off => (false, false),
            TlsSettings::Own | TlsSettings::Files(_) => (true, true),
            TlsSettings::Default => (
                is_beyond_loopback(gateway),
                !has_node || is_beyond_loopback(control),
            ),
        };
        Self { gateway, control }
    }
}

/// Whether other machines may reach a listener at this address.
fn is_beyond_loopback(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// Opens the certificate for the listeners that speak TLS, at the addresses that they have bound.
pub(super) async fn open(
    data_dir: &DataDir,
    settings: &Settings,
) -> Result<Encryption, StartError> {
    let listeners = [settings.gateway_listen, settings.control_listen];
    let coverage = Coverage::of(&settings.tls, listeners, settings.has_node);
    if !coverage.gateway && !coverage.control {
        return Ok(Encryption {
            gateway: None,
            control: None,
        });
    }
    let tls = open_certificate(data_dir, settings).await?;
    Ok(Encryption {
        gateway: coverage.gateway.then(|| tls.with_http2()),
        control: coverage.control.then_some(tls),
    })
}

async fn open_certificate(
    data_dir: &DataDir,
    settings: &Settings,
) -> Result<ServerTls, StartError> {
    let opened = match settings.tls.clone() {
        TlsSettings::Default | TlsSettings::Off | TlsSettings::Own => {
            let (data_dir, names) = (data_dir.clone(), names(settings.public_url.as_deref()));
            spawn_blocking(move || ServerTls::own(&data_dir, names).map_err(StartError::Io))
        }
        TlsSettings::Files(files) => spawn_blocking(move || {
            let opened = ServerTls::from_files(files);
            opened.map_err(|error| StartError::Setting(error.to_string()))
        }),
    };
    let opened = opened.await;
    opened.map_err(|error| StartError::Setting(error.to_string()))?
}

/// Requests to read the operator's files again, by SIGHUP. From this call on none is missed, so it comes before the files are
/// read. None for an own certificate, and with a node in the process, which is pinned to the key of the start.
pub(super) fn reload_requests(settings: &Settings) -> Option<Signal> {
    if !settings.tls.is_reloadable() || settings.has_node {
        return None;
    }
    let requests = signal(SignalKind::hangup()).inspect_err(|error| {
        tracing::warn!(%error, "SIGHUP can't be caught; a new certificate needs a restart");
    });
    requests.ok()
}

/// Names and addresses of this machine that its own certificate bears, for clients that check them.
fn names(public_url: Option<&str>) -> Vec<String> {
    let host_name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let public = public_url.and_then(|url| url.parse::<http::Uri>().ok());
    let public = public.and_then(|uri| uri.host().map(str::to_owned));
    let mut names: Vec<String> = LOOPBACK_NAMES.map(str::to_owned).to_vec();
    for name in [host_name].into_iter().chain(public) {
        // As certificates write it: without the brackets of an address, and without a final dot.
        let name = name.trim_start_matches('[').trim_end_matches([']', '.']);
        let name = name.to_ascii_lowercase();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Logs how the listeners are encrypted. Plain HTTP is fine on loopback, and for a reverse proxy there.
pub(super) fn log_start(encryption: &Encryption, listeners: [SocketAddr; 2]) {
    if let Some(tls) = encryption.certificate() {
        let (pin, expires) = (tls.pin(), tls.expiry());
        let gateway = scheme(encryption.gateway.is_some());
        let control = scheme(encryption.control.is_some());
        tracing::info!(%pin, %expires, gateway, control, "connections are encrypted");
    } else if listeners.into_iter().any(is_beyond_loopback) {
        tracing::warn!(
            "plain HTTP: passwords, tokens and output can be read on the network; start without --tls off, or listen on loopback behind a reverse proxy that speaks TLS"
        );
    }
}

/// Keeps the certificate current while the orchestrator runs.
pub(super) struct CertificateUpkeep {
    tls: ServerTls,
    /// Requests to read the operator's files again, where any are taken.
    reloads: Option<Signal>,
}

impl CertificateUpkeep {
    /// Upkeep of a certificate, with the [`reload_requests`] since its files were read.
    pub(super) const fn new(tls: ServerTls, reloads: Option<Signal>) -> Self {
        Self { tls, reloads }
    }

    /// Runs until `shutdown`.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut renewals = interval(RENEWAL_INTERVAL);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once; the certificate is as new.
        renewals.tick().await;
        loop {
            tokio::select! {
                () = shutdown_requested(shutdown.clone()) => return,
                _ = renewals.tick(), if !self.tls.has_files() => {}
                () = next(&mut self.reloads) => {}
            }
            self.reload().await;
        }
    }

    /// Takes the next certificate. After a failure the one in use stays.
    async fn reload(&self) {
        let tls = self.tls.clone();
        let reloaded = spawn_blocking(move || tls.reload()).await;
        let (pin, expires) = (self.tls.pin(), self.tls.expiry());
        match reloaded {
            Ok(Ok(true)) => tracing::info!(%pin, %expires, "certificate replaced"),
            Ok(Ok(false)) if self.tls.has_files() => {
                tracing::info!(%pin, %expires, "certificate read again; it is the same");
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, %expires, "certificate not replaced; the old one stays in use");
            }
            Err(error) => tracing::error!(%error, "certificate not replaced"),
        }
    }
}

/// Waits for the next signal, for ever where none is caught.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_bears_public_host() {
        for (url, host) in [
            ("https://Box.example:12082/", "box.example"),
            ("https://[2001:db8::7]:1", "2001:db8::7"),
            ("https://box.example.:1", "box.example"),
        ] {
            let names = names(Some(url));
            assert_eq!(names.last().unwrap(), host);
            assert!(names.iter().any(|name| name == "localhost"));
        }
        assert!(names(None).len() <= 4);
    }

    #[test]
    fn default_encrypts_nodes_and_exposed_gateways() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let coverage = |tls: &TlsSettings, gateway: &str, control: &str, has_node| {
            let found = Coverage::of(tls, [at(gateway), at(control)], has_node);
            (found.gateway, found.control)
        };
        let local = [
            "127.0.0.1:1",
            "[::1]:1",
            "127.0.0.2:1",
            "[::ffff:127.0.0.1]:1",
        ];
        let exposed = ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1"];
        let default = &TlsSettings::Default;
        for inside in local {
            for other in local {
                assert_eq!(coverage(default, inside, other, false), (false, true));
                assert_eq!(coverage(default, inside, other, true), (false, false));
                assert_eq!(
                    coverage(&TlsSettings::Own, inside, other, true),
                    (true, true)
                );
            }
            for outside in exposed {
                assert_eq!(coverage(default, outside, inside, false), (true, true));
                assert_eq!(coverage(default, outside, inside, true), (true, false));
                assert_eq!(coverage(default, inside, outside, true), (false, true));
                let off = coverage(&TlsSettings::Off, outside, outside, false);
                assert_eq!(off, (false, false));
            }
        }
    }
}
