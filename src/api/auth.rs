//! Login, sessions and who one is (contract, section 2).

use super::{
    UserId,
    lenient::{default_true, null_as_default, null_as_true},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of `POST /v1/auth/login`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Login {
    /// The user's name.
    pub handle: String,
    /// The user's password.
    pub password: String,
}

/// Body of `POST /v1/auth/refresh`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Refresh {
    /// The refresh token of the last answer; it dies with this call.
    pub refresh_token: String,
}

/// Body of `POST /v1/auth/logout`; may be left out.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
pub struct Logout {
    /// Ends this token's session as well, should it be another one.
    #[serde(default)]
    pub refresh_token: Option<String>,
}

/// Answer to login and refresh.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Tokens {
    /// Bearer token for the User API.
    pub access_token: String,
    /// Good for one refresh.
    pub refresh_token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// Seconds that the access token lives.
    pub expires_in: u64,
}

/// Answer of `GET /v1/users/me`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct User {
    /// Stable id.
    pub id: UserId,
    /// The name used to log in.
    pub handle: String,
    /// Mail address, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Whether the user may log in.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub is_active: bool,
    /// Whether the user may see and change everything. Not every gateway says it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_admin: bool,
}
