//! Arguments of `cynode secrets`, and the flags by which a command gets secrets.

use super::ClientFlags;
use crate::api::secrets::{InvalidSecretName, RenamedSecret, SecretInput, SecretName, SecretOwner};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum SecretsCommand {
    /// Store a secret, or replace its value: asked for at a terminal, or read from a file
    ///
    /// A value is never an argument, where other users of this machine would see it. It is kept encrypted, given only to
    /// the jobs that name it, and shown by no command.
    Set(SecretSetArgs),
    /// List the secrets that your jobs can use, without their values
    List(ClientFlags),
    /// Remove secrets; queued tasks that name them will fail
    #[command(visible_alias = "delete")]
    Rm(SecretRmArgs),
    /// Encrypt all secrets with a new key (admins only)
    ///
    /// Make a new backup afterwards: a database of before needs the keys of before.
    RotateKey(ClientFlags),
}

#[derive(Args, Debug)]
pub struct SecretSetArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Name of the secret: A-Z, 0-9 and _, such as API_TOKEN
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: SecretName,
    /// Read the value from this file, - for stdin; of one line, without its end
    #[arg(long, value_name = "FILE|-")]
    pub from_file: Option<PathBuf>,
    /// Let everyone's jobs use it (admins only)
    #[arg(long = "for", value_name = "USERS", value_parser = parse_owner, default_value = "me")]
    pub owner: SecretOwner,
}

#[derive(Args, Debug)]
pub struct SecretRmArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Names of the secrets
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Remove the ones that everyone's jobs use (admins only)
    #[arg(long = "for", value_name = "USERS", value_parser = parse_owner, default_value = "me")]
    pub owner: SecretOwner,
}

/// Secrets of a task or a sandbox.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sandbox")]
pub struct SecretFlags {
    /// Set a variable to a secret, by default the one of its name; see cynode secrets; repeatable
    #[arg(long, value_name = "NAME[:ENV]", value_parser = parse_secret)]
    pub secret: Vec<SecretInput>,
    /// Leave values of secrets as they are in the output [default: print *** instead]
    #[arg(long)]
    pub no_mask: bool,
}

impl SecretFlags {
    /// Secrets, where there are any.
    pub fn inputs(&self) -> Option<Vec<SecretInput>> {
        (!self.secret.is_empty()).then(|| self.secret.clone())
    }

    /// Whether values are masked, where that is not the default.
    pub fn mask(&self) -> Option<bool> {
        self.no_mask.then_some(false)
    }
}

fn parse_name(text: &str) -> Result<SecretName, String> {
    text.parse()
        .map_err(|error: InvalidSecretName| error.to_string())
}

fn parse_owner(text: &str) -> Result<SecretOwner, String> {
    text.parse()
        .map_err(|_| "expected me or everyone".to_owned())
}

fn parse_secret(text: &str) -> Result<SecretInput, String> {
    match text.split_once(':') {
        None => parse_name(text).map(SecretInput::Name),
        Some((name, env)) => Ok(SecretInput::Renamed(RenamedSecret {
            name: parse_name(name)?,
            env: Some(env.to_owned()),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_may_have_variable_of_its_own() {
        let name: SecretName = "A".parse().unwrap();
        assert_eq!(parse_secret("A"), Ok(SecretInput::Name(name.clone())));
        let env = Some("b".to_owned());
        let renamed = SecretInput::Renamed(RenamedSecret { name, env });
        assert_eq!(parse_secret("A:b"), Ok(renamed));
        for text in ["a", "", ":A", "A=x"] {
            assert!(parse_secret(text).is_err(), "{text}");
        }
    }
}
