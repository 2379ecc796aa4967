//! Encryption of both listeners: which certificate they show, and how it stays current.

use super::{Settings, StartError};
use crate::{
    data_dir::DataDir,
    http::server::{Shutdown, shutdown_requested},
    tls::{CertificateFiles, ServerTls},
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

/// Encryption that the operator chooses, for both listeners.
#[derive(Clone, Debug)]
pub enum TlsSettings {
    /// Plain HTTP.
    Off,
    /// TLS with a certificate that the orchestrator makes of itself.
    Own,
    /// TLS with a certificate of the operator's.
    Files(CertificateFiles),
}

impl TlsSettings {
    /// Whether SIGHUP has the certificate read again.
    pub const fn is_reloadable(&self) -> bool {
        matches!(self, Self::Files(_))
    }
}

/// Opens the certificate; `None` for plain HTTP.
pub(super) async fn open(
    data_dir: &DataDir,
    settings: &Settings,
) -> Result<Option<ServerTls>, StartError> {
    let opened = match settings.tls.clone() {
        TlsSettings::Off => return Ok(None),
        TlsSettings::Own => {
            let (data_dir, names) = (data_dir.clone(), names(settings.public_url.as_deref()));
            spawn_blocking(move || ServerTls::own(&data_dir, names).map_err(StartError::Io))
        }
        TlsSettings::Files(files) => spawn_blocking(move || {
            let opened = ServerTls::from_files(files);
            opened.map_err(|error| StartError::Setting(error.to_string()))
        }),
    };
    let opened = opened.await;
    opened
        .map_err(|error| StartError::Setting(error.to_string()))?
        .map(Some)
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

/// Logs how both listeners are encrypted. Plain HTTP is fine on loopback, and for a reverse proxy there.
pub(super) fn log_start(tls: Option<&ServerTls>, listeners: [SocketAddr; 2]) {
    match tls {
        Some(tls) => {
            let (pin, expires) = (tls.pin(), tls.expiry());
            tracing::info!(%pin, %expires, "connections are encrypted");
        }
        None if listeners.iter().all(|address| address.ip().is_loopback()) => {}
        None => tracing::warn!(
            "plain HTTP: passwords, tokens and output can be read on the network; encrypt connections with --tls on, or listen on loopback behind a reverse proxy that does"
        ),
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
}
