//! Use cases of admins: create and change users.

use super::{Caller, Identity};
use crate::{
    api::{
        UserId,
        audit::{AuditAction, RequestOrigin},
        auth::User,
        error::ApiError,
        problem::{Problem, ProblemKind},
        users::{CreateUser, ResetPassword, check_password},
    },
    store::{NewUser, UserChange, UserChangeOutcome},
};
use zeroize::Zeroizing;

/// Change of a user.
pub enum UserAction {
    /// Enable the user.
    Enable,
    /// Disable the user, and end their sessions.
    Disable,
    /// End all sessions of the user.
    RevokeSessions,
    /// Set a new password, and end all sessions of the user.
    ResetPassword(ResetPassword),
}

impl Identity {
    /// Creates a user. Fails with 409 if the handle is in use.
    pub async fn user_create(
        &self,
        admin: &Caller,
        create: CreateUser,
        origin: &RequestOrigin,
    ) -> Result<User, ApiError> {
        create.check()?;
        let handle = create.handle.clone();
        let new = NewUser {
            handle: create.handle,
            password_hash: self.hasher.hash(Zeroizing::new(create.password)).await?,
            email: create.email,
            is_admin: create.is_admin == Some(true),
        };
        let event = admin.audit_event(AuditAction::UserCreate, origin);
        let made = self
            .store
            .user_create(new, Some(admin.admin_authority()), event);
        made.await?.ok_or_else(|| {
            let text = format!("the handle {handle} is in use; choose another handle");
            Problem::new(ProblemKind::Conflict, text)
                .at("/handle")
                .into()
        })
    }

    /// Changes a user. Ended sessions end immediately, including their log streams.
    pub async fn user_change(
        &self,
        admin: &Caller,
        user: UserId,
        change: UserAction,
        origin: &RequestOrigin,
    ) -> Result<(), ApiError> {
        let (action, change) = match change {
            UserAction::Enable => (AuditAction::UserEnable, UserChange::Enable),
            UserAction::Disable => (AuditAction::UserDisable, UserChange::Disable),
            UserAction::RevokeSessions => {
                (AuditAction::UserRevokeSessions, UserChange::RevokeSessions)
            }
            UserAction::ResetPassword(ResetPassword { password }) => {
                let password = Zeroizing::new(password);
                check_password("/password", &password)?;
                let hash = self.hasher.hash(password).await?;
                (AuditAction::UserResetPassword, UserChange::Password(hash))
            }
        };
        let (event, by, store) = (
            admin.audit_event(action, origin),
            admin.admin_authority(),
            self.store.clone(),
        );
        let write = async move { store.user_change(user, change, Some(by), event).await };
        let is_done = |changed: &UserChangeOutcome| *changed == UserChangeOutcome::Done;
        match self.write_and_notify(write, is_done).await? {
            UserChangeOutcome::Done => Ok(()),
            UserChangeOutcome::Unknown => Err(Problem::not_found("user").into()),
            UserChangeOutcome::LastAdmin => Err(Problem::new(
                ProblemKind::Conflict,
                "this is the last active admin; enable or create another one first",
            )
            .into()),
            // Only a change of one's own password asks for the current one.
            UserChangeOutcome::PasswordChanged => Err(ApiError::internal("unexpected outcome")),
        }
    }
}
