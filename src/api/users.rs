//! Administration of users (contract, section 2).

use super::{auth::User, problem::Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shortest password, in characters.
pub const MIN_PASSWORD_CHARS: usize = 12;
/// Longest password, in characters.
pub const MAX_PASSWORD_CHARS: usize = 1024;
/// Longest handle, in bytes.
pub const MAX_HANDLE_BYTES: usize = 64;
/// Value of the query parameter `user` for all users, which is no handle.
pub const ALL_USERS: &str = "all";
/// Pattern of [`check_handle`], for schemas.
const HANDLE_PATTERN: &str = "^[a-z0-9][a-z0-9._-]{0,63}$";
/// Pattern of [`check_email`], for schemas, with the lengths of RFC 5321, section 4.5.3.1.
const EMAIL_PATTERN: &str = "^[!-?A-~]{1,64}@[!-?A-~]{1,189}$";

/// Body of `POST /v1/users`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct CreateUser {
    /// User name: 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or digit, and not `all`.
    #[schemars(regex(pattern = HANDLE_PATTERN))]
    pub handle: String,
    /// Password.
    #[schemars(length(min = MIN_PASSWORD_CHARS, max = MAX_PASSWORD_CHARS))]
    pub password: String,
    /// Mail address, for people; cynode sends no mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = EMAIL_PATTERN))]
    pub email: Option<String>,
    /// Whether the user is an admin; `false` by default.
    #[serde(default)]
    pub is_admin: Option<bool>,
}

impl CreateUser {
    /// Checks every field.
    pub fn check(&self) -> Result<(), Problem> {
        check_handle(&self.handle)?;
        check_password("/password", &self.password)?;
        self.email.as_deref().map_or(Ok(()), check_email)
    }
}

/// Body of `POST /v1/users/{id}/reset_password`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct ResetPassword {
    /// New password.
    #[schemars(length(min = MIN_PASSWORD_CHARS, max = MAX_PASSWORD_CHARS))]
    pub password: String,
}

/// Body of `POST /v1/users/me/password`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct ChangePassword {
    /// Password that is in force.
    #[schemars(length(min = 1, max = MAX_PASSWORD_CHARS))]
    pub current_password: String,
    /// New password.
    #[schemars(length(min = MIN_PASSWORD_CHARS, max = MAX_PASSWORD_CHARS))]
    pub new_password: String,
}

/// Answer of `GET /v1/users`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct UserList {
    /// Users, sorted by handle.
    pub users: Vec<User>,
    /// Value of `cursor` for the next page; empty at the end.
    #[serde(default)]
    pub next_cursor: String,
}

/// Checks a handle: `[a-z0-9][a-z0-9._-]{0,63}`, so that no two look alike and paths need no escapes. [`ALL_USERS`] is
/// none.
pub fn check_handle(handle: &str) -> Result<(), Problem> {
    if handle == ALL_USERS {
        let detail =
            format!("must not be {ALL_USERS}, which stands for all users (?user={ALL_USERS})");
        return Err(Problem::field("/handle", detail));
    }
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_good = handle.len() <= MAX_HANDLE_BYTES
        && handle.bytes().next().is_some_and(first)
        && handle.bytes().all(|b| first(b) || b"._-".contains(&b));
    if is_good {
        return Ok(());
    }
    Err(Problem::field(
        "/handle",
        format!(
            "must be 1 to {MAX_HANDLE_BYTES} of a-z, 0-9, '.', '_' and '-', starting with a letter or digit"
        ),
    ))
}

/// Checks the length of a password; `pointer` names its field.
pub fn check_password(pointer: &str, password: &str) -> Result<(), Problem> {
    let length = password.chars().count();
    if length < MIN_PASSWORD_CHARS {
        return Err(Problem::field(
            pointer,
            format!("must have at least {MIN_PASSWORD_CHARS} characters; choose a longer one"),
        ));
    }
    if length > MAX_PASSWORD_CHARS {
        return Err(Problem::field(
            pointer,
            format!("must have at most {MAX_PASSWORD_CHARS} characters; choose a shorter one"),
        ));
    }
    Ok(())
}

/// Checks the shape of a mail address: a local part, an `@` and a host.
fn check_email(email: &str) -> Result<(), Problem> {
    let part = |text: &str, longest| {
        let printable = text.bytes().all(|b| b.is_ascii_graphic() && b != b'@');
        printable && (1..=longest).contains(&text.len())
    };
    let parts = email.split_once('@');
    if parts.is_some_and(|(name, host)| part(name, 64) && part(host, 189)) {
        return Ok(());
    }
    Err(Problem::field(
        "/email",
        "must look like ann@example.com, in ASCII and with at most 254 characters",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn handle_follows_documented_form(handle in "\\PC{0,70}|[a-zA-Z0-9._-]{0,70}") {
            let bytes = handle.as_bytes();
            let inner = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
            let good = (1..=64).contains(&bytes.len())
                && bytes.iter().all(inner)
                && !b"._-".contains(&bytes[0])
                && handle != ALL_USERS;
            prop_assert_eq!(check_handle(&handle).is_ok(), good);
        }

        #[test]
        fn password_length_counts_characters(password in "\\PC{0,20}") {
            prop_assert_eq!(check_password("/password", &password).is_ok(), password.chars().count() >= 12);
        }
    }

    #[test]
    fn invalid_field_is_named() {
        let user = |json| serde_json::from_value::<CreateUser>(json).unwrap();
        let good = serde_json::json!({"handle": "ann", "password": "twelve chars", "email": "a@b"});
        user(good.clone()).check().unwrap();
        for (field, value) in [
            ("handle", ""),
            ("handle", "Ann"),
            ("handle", "-ann"),
            ("handle", ALL_USERS),
            ("handle", "ann\u{1b}[2J"),
            ("password", "elevenchars"),
            ("email", "nobody"),
            ("email", "a b@c"),
            ("email", "@c"),
            ("email", "a@b@c"),
        ] {
            let mut wrong = good.clone();
            wrong[field] = value.into();
            let problem = user(wrong).check().unwrap_err();
            assert_eq!(problem.errors[0].pointer, format!("#/{field}"));
        }
        assert!(check_password("/password", &"x".repeat(MAX_PASSWORD_CHARS + 1)).is_err());
    }
}
