//! Flags of encryption.

use super::Switch;
use clap::Args;
use std::path::PathBuf;

/// Encryption of an orchestrator's listeners. Without `--tls` there is a default of each role, which is not `on`.
#[derive(Args, Debug)]
pub struct TlsFlags {
    /// on: encrypt both listeners, with a certificate that this orchestrator makes of itself unless --tls-cert gives
    /// another; off: plain HTTP [default: on for the Node API, and for a User API beyond loopback; with --tls-cert for both;
    /// dev: only for listeners beyond loopback]
    #[arg(
        long,
        env = "CYNODE_TLS",
        value_name = "on|off",
        hide_possible_values = true,
        help_heading = "Connection"
    )]
    pub tls: Option<Switch>,
    /// Show this certificate, in PEM, followed by those of the authorities in between; serve-orchestrator reads it
    /// again at SIGHUP
    #[arg(
        long,
        env = "CYNODE_TLS_CERT",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, in PEM
    #[arg(
        long,
        env = "CYNODE_TLS_KEY",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub tls_key: Option<PathBuf>,
}
