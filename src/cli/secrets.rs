//! Arguments of `cynode secrets`, and the flags by which a command gets secrets.

use super::ClientFlags;
use crate::api::{
    egress::{HTTP_PORT, HostPort},
    secrets::{
        DetailedSecret, InvalidSecretName, SecretInput, SecretName, SecretOwner, header_name,
    },
};
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

/// Secret as a flag names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretArg {
    input: SecretInput,
    /// Whether its host is asked in plain HTTP, so that no TLS is opened there.
    is_plain: bool,
}

/// Secrets of a task or a sandbox.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sandbox")]
pub struct SecretFlags {
    /// Set a variable to a secret, by default the one of its name; with @HOST to a placeholder, and only this host gets the
    /// secret; see cynode secrets; repeatable
    ///
    /// With @HOST the command never sees the value: the proxy puts it in place of the placeholder in requests to this host, in
    /// the header after the slash, or else in authorization. That implies --allow for the host and --egress-terminate, so that
    /// the proxy sees requests inside of TLS; @http://HOST[:PORT] is for a host that is asked in plain HTTP.
    #[arg(
        long,
        value_name = "NAME[:ENV][@HOST[:PORT][/HEADER]]",
        value_parser = parse_secret
    )]
    pub secret: Vec<SecretArg>,
    /// Leave values of secrets as they are in the output [default: print *** instead]
    #[arg(long, requires = "secret")]
    pub no_mask: bool,
}

impl SecretFlags {
    /// Secrets, where there are any.
    pub fn inputs(&self) -> Option<Vec<SecretInput>> {
        let inputs = self.secret.iter().map(|secret| secret.input.clone());
        (!self.secret.is_empty()).then(|| inputs.collect())
    }

    /// Hosts that get secrets which the command never sees.
    pub fn hosts(&self) -> impl Iterator<Item = &HostPort> {
        self.secret.iter().filter_map(|secret| secret.input.host())
    }

    /// Those of them whose TLS the proxy opens.
    pub fn hosts_with_tls(&self) -> impl Iterator<Item = &HostPort> {
        let secrets = self.secret.iter().filter(|secret| !secret.is_plain);
        secrets.filter_map(|secret| secret.input.host())
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

pub(super) fn parse_secret(text: &str) -> Result<SecretArg, String> {
    let (variable, edge) = match text.split_once('@') {
        Some((variable, edge)) => (variable, Some(edge)),
        None => (text, None),
    };
    let (name, env) = match variable.split_once(':') {
        Some((name, env)) => (name, Some(env.to_owned())),
        None => (variable, None),
    };
    let name = parse_name(name)?;
    let Some(edge) = edge else {
        let input = match env {
            None => SecretInput::Name(name),
            Some(_) => SecretInput::Detailed(DetailedSecret {
                name,
                env,
                host: None,
                header: None,
            }),
        };
        return Ok(SecretArg {
            input,
            is_plain: false,
        });
    };
    let (host, header, is_plain) = parse_edge(edge)?;
    Ok(SecretArg {
        input: SecretInput::Detailed(DetailedSecret {
            name,
            env,
            host: Some(host),
            header,
        }),
        is_plain,
    })
}

/// Parses a host, the header after a slash, and whether the host is asked in plain HTTP: by its scheme, or at port 80.
fn parse_edge(text: &str) -> Result<(HostPort, Option<String>, bool), String> {
    let plain = text.strip_prefix("http://");
    let place = plain.or_else(|| text.strip_prefix("https://"));
    let place = place.unwrap_or(text);
    let (host, header) = match place.split_once('/') {
        Some((host, header)) => (host, Some(header)),
        None => (place, None),
    };
    let host = match plain {
        Some(_) if !host.is_empty() && !host.contains(':') => {
            format!("{host}:{HTTP_PORT}").parse::<HostPort>()
        }
        _ => host.parse::<HostPort>(),
    };
    let host = host.map_err(|error| format!("its host {error}"))?;
    let header = header.map(header_name).transpose();
    let header = header.map_err(|error| format!("its header {error}"))?;
    let is_plain = plain.is_some() || host.port == HTTP_PORT;
    Ok((host, header, is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_may_have_variable_of_its_own() {
        let name: SecretName = "A".parse().unwrap();
        let parsed = |text| parse_secret(text).map(|secret| secret.input);
        assert_eq!(parsed("A"), Ok(SecretInput::Name(name.clone())));
        let env = Some("b".to_owned());
        let renamed = SecretInput::Detailed(DetailedSecret {
            name,
            env,
            host: None,
            header: None,
        });
        assert_eq!(parsed("A:b"), Ok(renamed));
        for text in ["a", "", ":A", "A=x", "@a.b", "A B@a.b"] {
            assert!(parse_secret(text).is_err(), "{text}");
        }
    }

    #[test]
    fn secret_may_be_for_one_host() {
        for (text, env, host, header, is_plain) in [
            ("A@API.example.com", None, "api.example.com", None, false),
            ("A:b@a.b:8443", Some("b"), "a.b:8443", None, false),
            ("A@a.b/X-Api-Key", None, "a.b", Some("x-api-key"), false),
            ("A@https://a.b/x-key", None, "a.b", Some("x-key"), false),
            (
                "A:b@a.b:80/cookie",
                Some("b"),
                "a.b:80",
                Some("cookie"),
                true,
            ),
            ("A@http://a.b", None, "a.b:80", None, true),
            (
                "A@http://a.b:8080/x-key",
                None,
                "a.b:8080",
                Some("x-key"),
                true,
            ),
        ] {
            let input = SecretInput::Detailed(DetailedSecret {
                name: "A".parse().unwrap(),
                env: env.map(str::to_owned),
                host: Some(host.parse().unwrap()),
                header: header.map(str::to_owned),
            });
            let expected = SecretArg { input, is_plain };
            assert_eq!(parse_secret(text), Ok(expected), "{text}");
        }
        for (text, part) in [
            ("A@", "its host is empty"),
            ("A@*.a.b", "its host has *; name one host"),
            ("A@10.0.0.1", "its host is an IP address"),
            ("A@http://", "its host is empty"),
            ("A@ftp://a.b", "its host has an invalid port"),
            ("A@a.b:x", "its host has an invalid port"),
            ("A@a.b/", "its header is not the name of a header"),
            ("A@a.b/x/y", "its header is not the name of a header"),
            (
                "A@a.b/Host",
                "its header is a header that the proxy sets itself",
            ),
            ("A@a@b", "its host is not a valid name"),
        ] {
            let error = parse_secret(text).unwrap_err();
            assert!(error.starts_with(part), "{text}: {error}");
        }
    }
}
