//! Credentials with which nodes register: pre-shared keys and join tokens, from flags, variables and files.
//!
//! A flag of either kind overrides a variable of either kind, and both override `node.yaml`. clap would report a
//! conflict between a variable and the other flag.

use super::node_file::CredentialFiles;
use crate::{
    api::nodes::{JoinToken, PreSharedKeys, check_psk, first_psk},
    cli::{JoinFlags, PskFlags},
    exit::Failure,
    secrets::read_role_secret,
    tls::Pin,
};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Names by which one secret is given.
struct Source<'a> {
    /// Value of the flag that holds the secret itself.
    value: Option<&'a str>,
    /// Flag that names its file, and the file.
    file: (&'a str, Option<&'a Path>),
    /// Variable of the secret, and that of its file.
    variables: [&'a str; 2],
}

impl Source<'_> {
    fn read(&self) -> Result<Option<Zeroizing<String>>, Failure> {
        let ((flag, file), [variable, file_variable]) = (self.file, self.variables);
        if let Some(text) = self.value {
            return Ok(Some(Zeroizing::new(text.to_owned())));
        }
        if file.is_some() || std::env::var_os(variable).is_some() {
            return read_role_secret(flag, file, variable);
        }
        match std::env::var_os(file_variable).map(PathBuf::from) {
            Some(file) => read_role_secret(file_variable, Some(&file), ""),
            None => Ok(None),
        }
    }
}

/// Orchestrator that a node joins, and the secret that it shows there.
pub(super) struct NodeCredentials {
    /// URL of the control plane.
    pub(super) orchestrator: String,
    /// Pin of the orchestrator's certificate, where a join token has one.
    pub(super) pin: Option<Pin>,
    /// Pre-shared key, or the secret of a join token.
    pub(super) psk: Zeroizing<String>,
    /// Whether the secret is that of a join token.
    pub(super) is_join_token: bool,
}

impl NodeCredentials {
    /// Credentials of a node: a join token, or else the URL of the `orchestrator` and the pre-shared key. `missing`
    /// makes the error for a setting that is not there.
    pub(super) fn read(
        (psk, join): (&PskFlags, &JoinFlags),
        files: &CredentialFiles,
        orchestrator: Option<String>,
        missing: impl Fn(&str) -> Failure,
    ) -> Result<Self, Failure> {
        let psk = node_psk(psk, files.psk.as_deref())?;
        let Some(token) = join_token(join, files.join.as_deref())? else {
            let orchestrator = orchestrator.ok_or_else(|| {
                missing("the orchestrator's control plane: give --orchestrator URL, or a join token (--join-file)")
            })?;
            let psk = psk.ok_or_else(|| {
                missing("the pre-shared key: give --psk-file FILE (- is stdin) or CYNODE_PSK, or a join token (--join-file)")
            })?;
            return Ok(Self {
                orchestrator,
                pin: None,
                psk,
                is_join_token: false,
            });
        };
        if orchestrator.is_some() || psk.is_some() {
            return Err(Failure::usage(
                "a join token holds the orchestrator's URL and a secret of its own: leave out --orchestrator and the \
                 pre-shared key, and their variables and keys in node.yaml, or leave out the token",
            ));
        }
        Ok(Self {
            orchestrator: token.url,
            pin: token.pin,
            psk: token.secret,
            is_join_token: true,
        })
    }
}

fn psk_source(psk: &PskFlags) -> Source<'_> {
    Source {
        value: psk.psk.as_deref(),
        file: ("--psk-file", psk.psk_file.as_deref()),
        variables: ["CYNODE_PSK", "CYNODE_PSK_FILE"],
    }
}

/// Pre-shared keys of an orchestrator: one per line, newest first.
pub(super) fn orchestrator_psks(psk: &PskFlags) -> Result<Option<PreSharedKeys>, Failure> {
    let text = psk_source(psk).read()?;
    let keys = text.map(|text| PreSharedKeys::parse(&text));
    keys.transpose()
        .map_err(|problem| invalid_psk(&problem.detail))
}

/// Pre-shared key of a node: the first of its file. `file` is node.yaml's.
fn node_psk(psk: &PskFlags, file: Option<&Path>) -> Result<Option<Zeroizing<String>>, Failure> {
    let text = match (psk_source(psk).read()?, file) {
        (None, Some(file)) => read_role_secret("orchestrator.psk_file", Some(file), "")?,
        (text, _) => text,
    };
    let Some(text) = text else {
        return Ok(None);
    };
    let key = Zeroizing::new(first_psk(&text).to_owned());
    check_psk(&key).map_err(|problem| invalid_psk(&problem.detail))?;
    Ok(Some(key))
}

fn invalid_psk(detail: &str) -> Failure {
    Failure::usage(format!("the pre-shared key {detail}"))
}

/// Join token of a node. `file` is node.yaml's.
fn join_token(join: &JoinFlags, file: Option<&Path>) -> Result<Option<JoinToken>, Failure> {
    let source = Source {
        value: join.join.as_deref(),
        file: ("--join-file", join.join_file.as_deref()),
        variables: ["CYNODE_JOIN", "CYNODE_JOIN_FILE"],
    };
    let text = match (source.read()?, file) {
        (None, Some(file)) => read_role_secret("orchestrator.join_file", Some(file), "")?,
        (text, _) => text,
    };
    let token = text.map(|text| text.parse::<JoinToken>());
    token
        .transpose()
        .map_err(|error| Failure::usage(format!("the join token {error}")))
}

/// Join token that a variable gives, or whose file it names; `None` without one, and where the node gets it from stdin.
pub(crate) fn join_token_of_variables() -> Result<Option<JoinToken>, Failure> {
    let is_stdin = std::env::var_os("CYNODE_JOIN").is_none()
        && std::env::var_os("CYNODE_JOIN_FILE").is_some_and(|file| file == "-");
    if is_stdin {
        return Ok(None);
    }
    let flags = JoinFlags {
        join: None,
        join_file: None,
    };
    join_token(&flags, None)
}

/// Whether a variable gives the pre-shared key or names its file.
pub(super) fn has_psk_variable() -> bool {
    is_any_set(["CYNODE_PSK", "CYNODE_PSK_FILE"])
}

/// Whether a variable gives a join token or names its file.
pub(super) fn has_join_variable() -> bool {
    is_any_set(["CYNODE_JOIN", "CYNODE_JOIN_FILE"])
}

fn is_any_set(variables: [&str; 2]) -> bool {
    variables
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}
