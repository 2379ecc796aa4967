//! Callers: authenticated users, by the session of a login or by an API key.

use crate::{
    api::{
        SessionId, UserId,
        api_keys::{ApiKey, Scope},
        audit::{AuditAction, AuditEvent, RequestOrigin},
        auth::User,
        problem::{Problem, ProblemKind},
        time::Time,
    },
    store::{Authority, CredentialId},
};

/// Credential of a caller.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Session of an access token.
    Session(SessionId),
    /// API key.
    Key(Box<ApiKey>),
}

/// Credentials that a call accepts. Access tokens are always among them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// No API key.
    Login,
    /// API keys of any scope.
    AnyKey,
    /// API keys of this scope.
    Scope(Scope),
}

impl Access {
    /// Fails with 403 where a key is beyond its scopes.
    pub(super) fn check(self, credential: &Credential) -> Result<(), Problem> {
        let Credential::Key(key) = credential else {
            return Ok(());
        };
        let refuse = |detail: String| Err(Problem::new(ProblemKind::Forbidden, detail));
        match self {
            Self::AnyKey => Ok(()),
            Self::Scope(scope) if scope.is_within(&key.scopes) => Ok(()),
            Self::Login => refuse(LOGIN_REQUIRED.to_owned()),
            Self::Scope(scope) => {
                let names = key.scopes.iter().map(|scope| scope.as_str());
                let (has, needs) = (names.collect::<Vec<_>>().join(", "), scope.as_str());
                let or_all = if scope == Scope::All { "" } else { " or all" };
                refuse(format!(
                    "this API key is for {has}, but the call needs the scope {needs}{or_all}; create another key \
                     (POST /v1/keys, cynode keys create)"
                ))
            }
        }
    }
}

const LOGIN_REQUIRED: &str = "an API key may not do this; log in with a password (POST /v1/auth/login, cynode login) \
                              and send the access token";

/// Authenticated user.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user.
    pub user: User,
    /// Session or key.
    pub credential: Credential,
}

impl Caller {
    /// Audit event of this caller, to be stored with the change that it is about.
    pub fn audit_event(&self, action: AuditAction, origin: &RequestOrigin) -> AuditEvent {
        let event = AuditEvent::new(action, Time::now(), Some(origin));
        AuditEvent {
            api_key: self.key().map(|key| key.prefix.clone()),
            ..event.by(self.user.id, &self.user.handle)
        }
    }

    /// API key; `None` for a session.
    pub fn key(&self) -> Option<&ApiKey> {
        match &self.credential {
            Credential::Session(_) => None,
            Credential::Key(key) => Some(key),
        }
    }

    /// Session. Fails with 403 for an API key.
    pub(super) fn session(&self) -> Result<SessionId, Problem> {
        match self.credential {
            Credential::Session(session) => Ok(session),
            Credential::Key(_) => Err(Problem::new(ProblemKind::Forbidden, LOGIN_REQUIRED)),
        }
    }

    /// Rights that a write checks again in its transaction.
    pub fn authority(&self) -> Authority {
        Authority {
            credential: match &self.credential {
                Credential::Session(session) => CredentialId::Session(*session),
                Credential::Key(key) => CredentialId::Key(key.id),
            },
            user: self.user.id,
            admin: false,
        }
    }

    /// Rights of an admin, which a write for admins only checks again in its transaction.
    pub(super) fn admin_authority(&self) -> Authority {
        Authority {
            admin: true,
            ..self.authority()
        }
    }

    /// Owner of the tasks that this caller may see: the caller, or any (`None`) for an admin.
    pub fn visible_owner(&self) -> Option<UserId> {
        (!self.user.is_admin).then_some(self.user.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ApiKeyId;
    use proptest::prelude::*;

    fn key(scopes: Vec<Scope>) -> Credential {
        Credential::Key(Box::new(ApiKey {
            id: ApiKeyId::new(),
            name: "ci".to_owned(),
            prefix: "cyk_12345678".to_owned(),
            user: "ann".to_owned(),
            scopes,
            created_at: Time::from_millis(1),
            expires_at: None,
            last_used_at: None,
        }))
    }

    #[test]
    fn refusal_names_scopes() {
        let refused = |access: Access, scopes| access.check(&key(scopes)).unwrap_err().detail;
        let both = vec![Scope::Inference, Scope::Sandboxes];
        let detail = refused(Access::Scope(Scope::Tasks), both);
        assert!(detail.starts_with(
            "this API key is for inference, sandboxes, but the call needs the scope tasks or all;"
        ));
        assert_eq!(refused(Access::Login, vec![Scope::All]), LOGIN_REQUIRED);
    }

    proptest! {
        /// A key makes the calls of its scopes, and none that need a login; a session makes all.
        #[test]
        fn key_is_bound_by_its_scopes(scopes in prop::sample::subsequence(Scope::ALL.to_vec(), 1..4)) {
            let session = Credential::Session(SessionId::new());
            for access in Scope::ALL.iter().copied().map(Access::Scope).chain([Access::Login, Access::AnyKey]) {
                prop_assert!(access.check(&session).is_ok());
                let may = match access {
                    Access::Login => false,
                    Access::AnyKey => true,
                    Access::Scope(scope) => scopes.contains(&scope) || scopes.contains(&Scope::All),
                };
                prop_assert_eq!(access.check(&key(scopes.clone())).is_ok(), may);
            }
        }
    }
}
