//! Secrets for jobs: set, list, remove; the values for a job; a new key for all of them. Values are
//! [encrypted](super::secret_keys) before they are stored, and decrypted for the request that sends a job.

use super::{Caller, Identity};
use crate::{
    api::{
        TaskId, UserId,
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        problem::{Problem, ProblemKind},
        secrets::{
            MAX_JOB_SECRET_BYTES, MAX_SECRETS, RotatedKey, SecretList, SecretName, SecretOwner,
            SecretRef, SecretValue, SecretValues, SecretView,
        },
    },
    background::run_to_end,
    store::{Authority, SealedSecret, StoreError},
};

/// Reason why a job can't get its secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no secret of this name.
    #[error("there is no secret {1} that its user can use; set it with: cynode secrets set {1}")]
    Unknown(usize, SecretName),
    /// The key of a secret is lost, or its row was changed.
    #[error(
        "the secret {1} can't be decrypted with the keys of this orchestrator (keys/secrets.key); set it again with: cynode secrets set {1}"
    )]
    Unreadable(usize, SecretName),
    /// The values are too long together.
    #[error(
        "its secrets have {0} bytes together, and the limit is {limit}; use fewer, or send a large one as a file",
        limit = MAX_JOB_SECRET_BYTES
    )]
    TooLarge(usize),
    /// The database can't be read.
    #[error("the secrets can't be read from the database")]
    Store(#[from] StoreError),
}

impl From<SecretError> for ApiError {
    /// Error of a request that names the secrets in its field `secrets`.
    fn from(error: SecretError) -> Self {
        let detail = error.to_string();
        match error {
            SecretError::Unknown(n, name) => {
                let detail = format!(
                    "names the secret {name}, which you don't have and no admin shares; set it first (PUT /v1/secrets/{name}, cynode secrets set {name})"
                );
                Problem::field(&format!("/secrets/{n}"), detail).into()
            }
            SecretError::Unreadable(n, name) => {
                let detail = format!(
                    "names the secret {name}, which can't be decrypted with the keys of this orchestrator (keys/secrets.key); set it again (PUT /v1/secrets/{name}, cynode secrets set {name})"
                );
                let problem = Problem::new(ProblemKind::Conflict, detail);
                problem.at(&format!("/secrets/{n}")).into()
            }
            SecretError::TooLarge(_) => {
                Problem::field("/secrets", format!("is too much: {detail}")).into()
            }
            SecretError::Store(error) => error.into(),
        }
    }
}

/// Owner in the database.
fn owner_id(owner: SecretOwner, caller: &Caller) -> Option<UserId> {
    match owner {
        SecretOwner::Me => Some(caller.user.id),
        SecretOwner::Everyone => None,
    }
}

impl Identity {
    /// Sets the value of a secret, which was checked. For everyone only an admin does.
    pub async fn secret_set(
        &self,
        caller: &Caller,
        (owner, name): (SecretOwner, SecretName),
        value: &str,
        origin: &RequestOrigin,
    ) -> Result<SecretView, ApiError> {
        let id = owner_id(owner, caller);
        let event = caller.audit_event(AuditAction::SecretSet, origin);
        // Held until it is stored: a rotation in between would lose it.
        let ring = self.keys.secrets.read_or_create().await;
        let ring = ring.map_err(ApiError::internal)?;
        let sealing = ring.seal(id, &name, value);
        let sealing = sealing.ok_or_else(|| ApiError::internal("a secret can't be encrypted"))?;
        let (store, authority) = (self.store.clone(), authority(owner, caller));
        let secret = SealedSecret {
            owner: id,
            name,
            sealing,
        };
        let set = run_to_end("set_secret", async move {
            let set = store.secret_set(secret, authority, event).await;
            drop(ring);
            set
        });
        let set = set.await.map_err(ApiError::internal)??;
        set.ok_or_else(|| {
            let detail = format!(
                "there are {MAX_SECRETS} secrets already, which is the limit; remove some (DELETE /v1/secrets/{{name}}, cynode secrets rm)"
            );
            Problem::new(ProblemKind::Conflict, detail).into()
        })
    }

    /// Lists the secrets that the caller's jobs can name.
    pub async fn secret_list(&self, caller: &Caller) -> Result<SecretList, ApiError> {
        Ok(SecretList {
            secrets: self.store.secret_list(caller.user.id).await?,
            next_cursor: String::new(),
        })
    }

    /// Removes a secret. Queued jobs that name it end with an error.
    pub async fn secret_remove(
        &self,
        caller: &Caller,
        (owner, name): (SecretOwner, SecretName),
        origin: &RequestOrigin,
    ) -> Result<(), ApiError> {
        let (id, authority) = (owner_id(owner, caller), authority(owner, caller));
        let event = caller.audit_event(AuditAction::SecretDelete, origin);
        let removed = self.store.secret_remove(id, name.clone(), authority, event);
        if removed.await? {
            return Ok(());
        }
        if owner == SecretOwner::Me {
            // The list of the caller has it, so it may be what they mean.
            let listed = self.store.secret_list(caller.user.id).await?;
            if listed.iter().any(|one| one.shared && one.name == name) {
                let detail = format!(
                    "you have no secret {name}, but one of this name is shared with everyone; admins remove that with ?for=everyone (cynode secrets rm {name} --for everyone)"
                );
                return Err(Problem::new(ProblemKind::NotFound, detail).into());
            }
        }
        Err(Problem::not_found("secret").into())
    }

    /// Encrypts all secrets with a new key. Goes on when the caller hangs up.
    pub async fn secret_rotate_key(
        &self,
        admin: &Caller,
        origin: &RequestOrigin,
    ) -> Result<RotatedKey, ApiError> {
        let event = admin.audit_event(AuditAction::SecretRotateKey, origin);
        let (keys, store) = (self.keys.secrets.clone(), self.store.clone());
        let authority = admin.admin_authority();
        let rotated = run_to_end("rotate_secret_key", async move {
            let rotation = keys.begin_rotation().await.map_err(ApiError::internal)?;
            let ring = rotation.ring();
            let reseal = move |secret: &SealedSecret| ring.reseal(secret);
            let rotated = store.secret_reseal(reseal, authority, event).await?;
            rotation.end().await;
            tracing::info!(
                secrets = rotated.secrets,
                unreadable = rotated.unreadable,
                "secrets encrypted with a new key"
            );
            Ok(rotated)
        });
        rotated.await.map_err(ApiError::internal)?
    }

    /// Number of secrets, of all users, whose key is lost.
    pub async fn secrets_without_key(&self) -> Result<u32, StoreError> {
        let ring = self.keys.secrets.read().await;
        let used = self.store.secret_keys_in_use().await?;
        let lost = used.iter().filter(|(key, _)| !ring.has(key));
        Ok(lost.map(|(_, count)| count).sum())
    }

    /// Values of the secrets that a user's new job names.
    pub async fn secrets_of_user(
        &self,
        user: UserId,
        refs: &[SecretRef],
    ) -> Result<SecretValues, SecretError> {
        let names = refs.iter().map(|secret| secret.name.clone()).collect();
        // Held while they are read: a rotation in between would make them unreadable.
        let ring = self.keys.secrets.read().await;
        let found = self.store.secrets_of_user(user, names).await?;
        values(refs, found, |secret| {
            ring.open(secret).map(SecretValue::from)
        })
    }

    /// Values of the secrets that a task names.
    pub async fn secrets_of_task(
        &self,
        task: TaskId,
        refs: &[SecretRef],
    ) -> Result<SecretValues, SecretError> {
        let names = refs.iter().map(|secret| secret.name.clone()).collect();
        let ring = self.keys.secrets.read().await;
        let found = self.store.secrets_of_task(task, names).await?;
        values(refs, found, |secret| {
            ring.open(secret).map(SecretValue::from)
        })
    }
}

/// Rights for a change: those of an admin for what all users can name.
fn authority(owner: SecretOwner, caller: &Caller) -> Authority {
    match owner {
        SecretOwner::Me => caller.authority(),
        SecretOwner::Everyone => caller.admin_authority(),
    }
}

/// Values of secrets, by the variables that get them.
fn values(
    refs: &[SecretRef],
    found: Vec<Option<SealedSecret>>,
    open: impl Fn(&SealedSecret) -> Option<SecretValue>,
) -> Result<SecretValues, SecretError> {
    let values = refs
        .iter()
        .zip(found)
        .enumerate()
        .map(|(n, (secret, found))| {
            let name = &secret.name;
            let found = found.ok_or_else(|| SecretError::Unknown(n, name.clone()))?;
            let value = open(&found).ok_or_else(|| SecretError::Unreadable(n, name.clone()))?;
            Ok((secret.env.clone(), value))
        });
    let values = values.collect::<Result<SecretValues, SecretError>>()?;
    match values.bytes() {
        bytes if bytes > MAX_JOB_SECRET_BYTES => Err(SecretError::TooLarge(bytes)),
        _ => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SecretSealing;
    use zeroize::Zeroizing;

    fn secret(name: &str, length: usize) -> (SecretRef, Option<SealedSecret>) {
        let name: SecretName = name.parse().unwrap();
        let secret = SecretRef {
            name: name.clone(),
            env: name.to_string(),
            host: None,
            header: None,
        };
        let sealed = SealedSecret {
            owner: None,
            name,
            sealing: SecretSealing {
                key_id: String::new(),
                bytes: vec![b'x'; length],
            },
        };
        (secret, (length > 0).then_some(sealed))
    }

    fn outcome(secrets: Vec<(SecretRef, Option<SealedSecret>)>) -> Result<SecretValues, String> {
        let (refs, found): (Vec<_>, Vec<_>) = secrets.into_iter().unzip();
        let open = |secret: &SealedSecret| {
            let text = String::from_utf8(secret.sealing.bytes.clone()).ok();
            let text = text.filter(|text| text.len() != 7);
            text.map(|text| SecretValue::from(Zeroizing::new(text)))
        };
        values(&refs, found, open).map_err(|error| error.to_string())
    }

    #[test]
    fn missing_secret_is_named_with_next_step() {
        assert_eq!(outcome(vec![secret("A", 2)]).unwrap().bytes(), 2);
        for (length, words) in [
            (0, "there is no secret B"),
            (7, "set it again with: cynode secrets set B"),
        ] {
            let error = outcome(vec![secret("A", 2), secret("B", length)]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let large = MAX_JOB_SECRET_BYTES / 2 + 1;
        assert!(outcome(vec![secret("A", large), secret("B", large)]).is_err());
    }
}
