//! Secrets: values such as tokens of services, which a user stores once and a job gets as environment variables
//! (contract, section 8).
//!
//! [`SecretName`] and the answers of `/v1/secrets` stand here; [`refs`] has how a job names secrets, [`edge`] what is said of
//! those that a job never sees, and [`values`] the values on their way to a node. No answer holds a value.

mod edge;
mod name;
mod refs;
mod values;

pub use edge::{DEFAULT_HEADER, InvalidHeader, header_name};
pub(in crate::api) use edge::{check_hosts, check_sent};
pub use name::{InvalidSecretName, MAX_SECRET_NAME_CHARS, SECRET_NAME_PATTERN, SecretName};
pub(in crate::api) use refs::check as check_refs;
pub use refs::{DetailedSecret, MAX_JOB_SECRETS, SecretInput, SecretRef, resolve};
pub use values::{MAX_JOB_SECRET_BYTES, SecretValue, SecretValues};

use super::{problem::Problem, time::Time};
use crate::api::string_form::named_enum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest value of a secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;
/// Shortest value that is masked in output, in bytes: a shorter one is in too many texts by chance.
pub const MIN_MASKED_BYTES: usize = 4;
/// Most secrets of one user, and most shared ones.
pub const MAX_SECRETS: u32 = 100;

named_enum! {
    /// Users whose jobs can name a secret: query parameter `for` of the calls about it.
    #[derive(Default)]
    pub enum SecretOwner {
        /// Only the caller.
        #[default]
        Me,
        /// All users; only an admin sets and deletes such a secret. A user's own secret of the same name counts more.
        Everyone,
    }
}

/// Checks the value of a secret, which becomes an environment variable: some text, not too long, without NUL.
pub fn check_value(value: &[u8]) -> Result<&str, Problem> {
    let refuse = |detail: String| Err(Problem::field("", detail));
    if value.is_empty() {
        let detail = "the value is empty; to remove a secret, use DELETE (cynode secrets rm)";
        return refuse(detail.to_owned());
    }
    if value.len() > MAX_SECRET_BYTES {
        let length = value.len();
        return refuse(format!(
            "the value is {length} bytes long; the limit is {MAX_SECRET_BYTES} bytes"
        ));
    }
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains('\0') => Ok(text),
        Ok(_) => refuse(
            "the value contains a NUL character, which no environment variable can hold; store it as base64".to_owned(),
        ),
        Err(_) => refuse(
            "the value is not UTF-8 text, and becomes an environment variable; store it as base64".to_owned(),
        ),
    }
}

/// Secret without its value.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize, JsonSchema)]
pub struct SecretView {
    /// Name of the secret.
    pub name: SecretName,
    /// Whether all users can name it in their jobs.
    pub shared: bool,
    /// Handle of the user who set its value.
    pub set_by: String,
    /// Time of its creation.
    pub created_at: Time,
    /// Time at which its value was set.
    pub updated_at: Time,
}

/// Answer of `GET /v1/secrets`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct SecretList {
    /// The caller's secrets and the shared ones, by name; of two with one name the caller's first, which counts.
    pub secrets: Vec<SecretView>,
    /// Empty: the list has one page.
    #[serde(default)]
    pub next_cursor: String,
}

/// Answer of `POST /v1/secrets:rotate-key`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct RotatedKey {
    /// Number of secrets that were encrypted again, of all users.
    pub secrets: u32,
    /// Number of secrets that no key of this orchestrator can read; they have to be set again.
    pub unreadable: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_text_for_environment() {
        assert_eq!(check_value("ä\nb".as_bytes()).unwrap(), "ä\nb");
        assert!(check_value(&vec![b'x'; MAX_SECRET_BYTES]).is_ok());
        for value in [
            &b""[..],
            b"a\0b",
            b"\xff",
            &vec![b'x'; MAX_SECRET_BYTES + 1][..],
        ] {
            assert!(check_value(value).is_err());
        }
    }
}
