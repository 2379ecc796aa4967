//! Lists for admins: users and the audit log.

use super::{Caller, Identity, page};
use crate::{
    api::{audit::AuditLog, error::ApiError, users::UserList},
    store::AuditFilter,
};

impl Identity {
    /// Lists up to `limit` users by handle, from the one after the handle `after` on.
    pub async fn user_list(
        &self,
        admin: &Caller,
        after: Option<String>,
        limit: u32,
    ) -> Result<UserList, ApiError> {
        // One more than requested shows whether there is another page.
        let users = self.store.user_list(admin.user.id, after, limit + 1);
        let (users, has_more) = page(users.await?, limit);
        let last = users.last().filter(|_| has_more);
        Ok(UserList {
            next_cursor: last.map_or_else(String::new, |user| user.handle.clone()),
            users,
        })
    }

    /// Lists audit events, newest first.
    pub async fn audit_list(
        &self,
        admin: &Caller,
        filter: AuditFilter,
    ) -> Result<AuditLog, ApiError> {
        let limit = filter.limit;
        let filter = AuditFilter {
            limit: limit + 1,
            ..filter
        };
        let events = self.store.audit_list(admin.user.id, filter).await?;
        let (events, has_more) = page(events, limit);
        let last = events.last().filter(|_| has_more);
        Ok(AuditLog {
            next_cursor: last.map_or_else(String::new, |entry| entry.seq.to_string()),
            events,
        })
    }
}
