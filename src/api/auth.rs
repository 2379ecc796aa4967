//! Login and sessions (contract, section 2).

use super::{
    UserId,
    lenient::{default_true, null_as_default, null_as_true},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Body of `POST /v1/auth/login`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Login {
    /// User name.
    pub handle: String,
    /// Password.
    pub password: String,
}

/// Body of `POST /v1/auth/refresh`.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Refresh {
    /// Refresh token of the last answer; valid for one use.
    pub refresh_token: String,
}

/// Body of `POST /v1/auth/logout`; optional.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
pub struct Logout {
    /// Refresh token whose session ends, too, if it is another one.
    #[serde(default)]
    pub refresh_token: Option<String>,
}

/// Answer of login and refresh.
#[derive(Deserialize, Serialize, JsonSchema)]
pub struct Tokens {
    /// Bearer token for the User API.
    pub access_token: String,
    /// Token for one refresh.
    pub refresh_token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// Lifetime of the access token, in seconds.
    pub expires_in: u64,
}

/// Answer of `GET /v1/users/me`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct User {
    /// Id of the user.
    pub id: UserId,
    /// User name.
    pub handle: String,
    /// Mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Whether the user may log in.
    #[serde(default = "default_true", deserialize_with = "null_as_true")]
    pub is_active: bool,
    /// Whether the user is an admin; `false` where another implementation leaves it out.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_admin: bool,
}
