//! Join tokens, and why one does not let a node in.

use crate::api::time::Time;

/// Join token to be created.
pub struct NewJoinToken {
    /// SHA-256 of its secret.
    pub secret_sha256: String,
    /// Slug of the only node that can join by it.
    pub slug: Option<String>,
    /// Number of nodes that can join by it.
    pub uses: u32,
    /// Time from which on no new node can join by it.
    pub expires_at: Time,
    /// URL of the control plane that it holds.
    pub url: String,
}

/// Reason for which a token does not let a node in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinRefusal {
    /// The token was removed, for the nodes that joined by it, too.
    Removed,
    /// Who created the token is disabled or no admin any more, and this node had not joined by it.
    CreatorNotAdmin,
    /// The token has expired, and this node had not joined by it.
    Expired(Time),
    /// This many other nodes have joined by the token, which are all that may.
    UsedUp(u32),
    /// The token is only for the node of this slug.
    OtherSlug(String),
}

impl JoinRefusal {
    /// Name in the audit log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Removed => "token-removed",
            Self::CreatorNotAdmin => "token-creator-not-admin",
            Self::Expired(_) => "token-expired",
            Self::UsedUp(_) => "token-used-up",
            Self::OtherSlug(_) => "token-for-another-slug",
        }
    }
}

/// State of a token for a node that shows it.
#[derive(Clone, Debug)]
pub struct JoinTokenState {
    /// Whether the token was removed.
    pub is_removed: bool,
    /// Whether the user who created it may still let nodes in.
    pub is_by_admin: bool,
    /// Slug of the only node that can join by it.
    pub slug: Option<String>,
    /// Number of nodes that can join by it.
    pub uses: u32,
    /// Number of nodes that have joined by it.
    pub used: u32,
    /// Time from which on no new node can join by it.
    pub expires_at: Time,
    /// Whether this node has joined by it.
    pub has_joined: bool,
}

impl JoinTokenState {
    /// Whether the token lets in a node of this slug at the time `now`. Uses, expiry and its creator bound new nodes only: one
    /// that has joined may register again until the token is removed.
    pub fn admit(&self, slug: &str, now: Time) -> Result<(), JoinRefusal> {
        if self.is_removed {
            return Err(JoinRefusal::Removed);
        }
        if self.has_joined {
            return Ok(());
        }
        if !self.is_by_admin {
            return Err(JoinRefusal::CreatorNotAdmin);
        }
        if let Some(only) = self.slug.as_ref().filter(|only| *only != slug) {
            return Err(JoinRefusal::OtherSlug(only.clone()));
        }
        if self.used >= self.uses {
            return Err(JoinRefusal::UsedUp(self.uses));
        }
        if self.expires_at <= now {
            return Err(JoinRefusal::Expired(self.expires_at));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Time = Time::from_millis(1_790_000_000_000);

    fn state() -> JoinTokenState {
        JoinTokenState {
            is_removed: false,
            is_by_admin: true,
            slug: None,
            uses: 1,
            used: 0,
            expires_at: NOW.plus(std::time::Duration::from_millis(1)),
            has_joined: false,
        }
    }

    #[test]
    fn refusal_names_what_ended_token() {
        let refused = |state: JoinTokenState| state.admit("box", NOW).unwrap_err().as_str();
        assert_eq!(state().admit("box", NOW), Ok(()));
        let expires_at = NOW;
        assert_eq!(
            refused(JoinTokenState {
                expires_at,
                ..state()
            }),
            "token-expired"
        );
        assert_eq!(
            refused(JoinTokenState { used: 1, ..state() }),
            "token-used-up"
        );
        let slug = Some("other".to_owned());
        assert_eq!(
            refused(JoinTokenState { slug, ..state() }),
            "token-for-another-slug"
        );
        let is_by_admin = false;
        assert_eq!(
            refused(JoinTokenState {
                is_by_admin,
                ..state()
            }),
            "token-creator-not-admin"
        );
        let is_removed = true;
        assert_eq!(
            refused(JoinTokenState {
                is_removed,
                ..state()
            }),
            "token-removed"
        );
    }

    proptest! {
        /// A node that has joined is let in until the token is removed, whatever else ended.
        #[test]
        fn joined_node_may_return(is_removed: bool, is_by_admin: bool, used in 0u32..3, uses in 1u32..3, age in -2i64..2) {
            let state = JoinTokenState {
                is_removed,
                is_by_admin,
                slug: Some("other".to_owned()),
                uses,
                used,
                expires_at: Time::from_millis(NOW.as_millis() + age),
                has_joined: true,
            };
            prop_assert_eq!(state.admit("box", NOW).is_ok(), !is_removed);
        }
    }
}
