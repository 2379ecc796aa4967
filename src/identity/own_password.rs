//! Change of one's own password: proven with the current one, and guarded like a login.

use super::{Caller, Identity, password::PasswordCheck, throttle::ThrottleKey};
use crate::{
    api::{
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        problem::{Problem, ProblemKind},
        users::{ChangePassword, MAX_PASSWORD_CHARS, check_password},
    },
    store::{UserChange, UserChangeOutcome},
};
use zeroize::Zeroizing;

fn wrong_password() -> Problem {
    Problem::new(
        ProblemKind::Forbidden,
        "the current password is wrong; try again, or ask an admin to reset your password",
    )
}

impl Identity {
    /// Sets a new password of the caller, and ends their other sessions. Fails with 403 where the current password is
    /// wrong, after a wait that grows with each failure, as for logins.
    pub async fn change_password(
        &self,
        caller: &Caller,
        change: ChangePassword,
        origin: &RequestOrigin,
    ) -> Result<(), ApiError> {
        let current = Zeroizing::new(change.current_password);
        let new = Zeroizing::new(change.new_password);
        check_password("/new_password", &new)?;
        if current.chars().count() > MAX_PASSWORD_CHARS {
            return Err(wrong_password().into());
        }
        let handle = &caller.user.handle;
        let attempt = self.logins.admit(vec![
            ThrottleKey::handle_from(origin.address, handle),
            ThrottleKey::handle(handle),
        ])?;
        tokio::time::sleep(attempt.delay).await;
        match self.replace_password(caller, current, new, origin).await {
            Ok(true) => {
                attempt.succeed();
                Ok(())
            }
            Ok(false) => Err(wrong_password().into()),
            Err(problem) => {
                attempt.discard();
                Err(problem)
            }
        }
    }

    /// Whether the current password was right, and is replaced.
    async fn replace_password(
        &self,
        caller: &Caller,
        current: Zeroizing<String>,
        new: Zeroizing<String>,
        origin: &RequestOrigin,
    ) -> Result<bool, ApiError> {
        let event = caller.audit_event(AuditAction::UserChangePassword, origin);
        let found = self
            .store
            .user_by_handle(caller.user.handle.clone())
            .await?;
        let checked = self.hasher.check(found.clone(), current).await?;
        let (Some(record), PasswordCheck::Right { .. }) = (found, checked) else {
            let event = event.to(&caller.user.handle).failed("wrong-password");
            self.record_audit(event).await?;
            return Ok(false);
        };
        let change = UserChange::OwnPassword {
            current: record.password_hash,
            new: self.hasher.hash(new).await?,
            keep: caller.session()?,
        };
        let (user, by, store) = (caller.user.id, caller.authority(), self.store.clone());
        let write = async move { store.user_change(user, change, Some(by), event).await };
        let is_done = |changed: &UserChangeOutcome| *changed == UserChangeOutcome::Done;
        match self.write_and_notify(write, is_done).await? {
            UserChangeOutcome::Done => Ok(true),
            _ => Err(Problem::new(
                ProblemKind::Conflict,
                "the password was changed meanwhile; try again with that one",
            )
            .into()),
        }
    }
}
