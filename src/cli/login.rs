//! Flags of `login` and `passwd`.

use super::ClientFlags;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct LoginArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Your handle
    #[arg(
        long,
        env = "CYNODE_HANDLE",
        default_value = "admin",
        help_heading = "Identity"
    )]
    pub handle: String,
    /// Read your password from a file (or set CYNODE_PASSWORD)
    #[arg(
        long,
        env = "CYNODE_PASSWORD_FILE",
        value_name = "FILE",
        help_heading = "Identity"
    )]
    pub password_file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct PasswdArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Read your current password from a file (or set CYNODE_PASSWORD)
    #[arg(long, env = "CYNODE_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Read the new password from a file
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
}
