//! Users, sessions and the audit log.

use crate::api::{ApiKeyId, SessionId, UserId, audit::AuditAction, auth::User};

/// Credential of a caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CredentialId {
    /// Session of an access token.
    Session(SessionId),
    /// API key.
    Key(ApiKeyId),
}

/// Caller of a write, checked again within the write: between the check at the start of a request and its
/// end, in which a body arrives and a password is hashed, the session may have ended.
#[derive(Clone, Copy, Debug)]
pub struct Authority {
    /// Session or key of the caller.
    pub credential: CredentialId,
    /// User to whom it belongs.
    pub user: UserId,
    /// Whether the write is for admins only.
    pub admin: bool,
}

/// Password hash that a login was checked against. It opens a session only while it is still the hash of
/// the user, so that no login with an old password outlives a change of the password.
pub struct PasswordProof {
    /// Hash that the password was checked against.
    pub password_hash: String,
    /// New hash of the same password, to be stored in its place.
    pub rehashed: Option<String>,
}

/// Result of using a refresh token.
pub enum RefreshOutcome {
    /// The token was valid and is replaced by the new one.
    Rotated {
        /// User of the session.
        user: User,
        /// Session that goes on.
        session: SessionId,
    },
    /// The token had been used before; its session is revoked.
    Reused,
    /// The token is unknown, expired or revoked, or its user may not log in.
    Dead,
}

/// User with the fields that only the identity room may see.
#[derive(Clone)]
pub struct UserRecord {
    /// Public fields.
    pub user: User,
    /// PHC string, argon2id.
    pub password_hash: String,
}

/// User to be created.
pub struct NewUser {
    /// Name for logging in.
    pub handle: String,
    /// PHC string, argon2id.
    pub password_hash: String,
    /// Mail address, where one was given.
    pub email: Option<String>,
    /// Whether the user is an admin.
    pub is_admin: bool,
}

/// Change of a user.
pub enum UserChange {
    /// Lets the user log in again.
    Enable,
    /// Keeps the user from logging in; ends all sessions.
    Disable,
    /// Ends all sessions.
    RevokeSessions,
    /// Sets another password, as a PHC string; ends all sessions.
    Password(String),
    /// Sets another password in place of the one that the user proved to know; ends all sessions but one.
    OwnPassword {
        /// Hash that the current password was checked against; another one means that it was changed meanwhile.
        current: String,
        /// New hash, as a PHC string.
        new: String,
        /// Session that goes on.
        keep: SessionId,
    },
}

/// Result of changing a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserChangeOutcome {
    /// The user was changed.
    Done,
    /// No such user.
    Unknown,
    /// The user is the last active admin and stays enabled.
    LastAdmin,
    /// The password that was proven is no longer that of the user.
    PasswordChanged,
}

/// Filter for the audit log.
pub struct AuditFilter {
    /// Only events of this action.
    pub action: Option<AuditAction>,
    /// Only events by this handle or slug, or about it.
    pub who: Option<String>,
    /// Only events before this one.
    pub before: Option<i64>,
    /// Maximum number of events.
    pub limit: u32,
}

/// Copy of a database that was made.
#[derive(Clone, Copy, Debug)]
pub struct BackupSummary {
    /// Size of the copy.
    pub bytes: u64,
    /// Schema version of the copy.
    pub schema: i64,
}
