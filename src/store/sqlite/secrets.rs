//! Secrets for jobs: encrypted values, by owner and name. A user's own secret counts more than a shared one of the same
//! name.

use super::{
    Authority, Resealed, SealedSecret, SecretSealing, Store, StoreError, audit,
    authority::authorize, rows::execute,
};
use crate::api::{
    TaskId, UserId,
    audit::AuditEvent,
    secrets::{MAX_SECRETS, RotatedKey, SecretName, SecretView},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

const COUNT: &str = "SELECT count(*) FROM secrets WHERE owner = ?1 AND name <> ?2";
const UPSERT: &str =
    "INSERT INTO secrets (owner, name, key_id, sealed, set_by, created_at, updated_at)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)
     ON CONFLICT (owner, name) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed,
        set_by = excluded.set_by, updated_at = excluded.updated_at";
const GET: &str = "SELECT s.name, s.owner = '' AS shared, u.handle, s.created_at, s.updated_at
     FROM secrets s JOIN users u ON u.id = s.set_by WHERE s.owner = ?1 AND s.name = ?2";
/// An empty owner comes last.
const LIST: &str = "SELECT s.name, s.owner = '' AS shared, u.handle, s.created_at, s.updated_at
     FROM secrets s JOIN users u ON u.id = s.set_by
     WHERE s.owner IN (?1, '') ORDER BY s.name, s.owner DESC";
const SEALED: &str = "SELECT owner, name, key_id, sealed FROM secrets
     WHERE name = ?2 AND owner IN (?1, '') ORDER BY owner DESC LIMIT 1";
const KEYS: &str = "SELECT key_id, count(*) FROM secrets GROUP BY key_id";
const ALL_NAMES: &str = "SELECT owner, name FROM secrets";

/// Owner in its column.
fn owner_text(owner: Option<UserId>) -> String {
    owner.map_or_else(String::new, |user| user.to_string())
}

fn view(row: &Row<'_>) -> rusqlite::Result<SecretView> {
    Ok(SecretView {
        name: row.get("name")?,
        shared: row.get("shared")?,
        set_by: row.get("handle")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

/// Secret that a user's job gets by a name.
fn sealed(
    c: &Connection,
    owner: &str,
    name: &SecretName,
) -> Result<Option<SealedSecret>, StoreError> {
    let mut statement = c.prepare_cached(SEALED)?;
    let mut rows = statement.query(params![owner, name])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let owner: String = row.get("owner")?;
    let owner = match owner.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|_| StoreError::Damaged("secret"))?),
    };
    Ok(Some(SealedSecret {
        owner,
        name: row.get("name")?,
        sealing: SecretSealing {
            key_id: row.get("key_id")?,
            bytes: row.get("sealed")?,
        },
    }))
}

/// Event about a secret: by its name, never its value.
fn about(event: &AuditEvent, owner: Option<UserId>, name: &SecretName) -> AuditEvent {
    let event = event.clone().to(name.as_str());
    match owner {
        Some(_) => event,
        None => event.with_details("for everyone"),
    }
}

impl Store {
    /// Sets the value of a secret, whether there is one of its name or not. `None` where its owner has too many.
    pub async fn secret_set(
        &self,
        secret: SealedSecret,
        by: Authority,
        event: AuditEvent,
    ) -> Result<Option<SecretView>, StoreError> {
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let (owner, name) = (owner_text(secret.owner), &secret.name);
            let mut count = c.prepare_cached(COUNT)?;
            let others: u32 = count.query_row(params![owner, name], |row| row.get(0))?;
            let event = about(&event, secret.owner, name);
            if others >= MAX_SECRETS {
                audit::add(c, &event.failed("conflict"))?;
                return Ok(None);
            }
            let SecretSealing { key_id, bytes } = &secret.sealing;
            let values = params![owner, name, key_id, bytes, by.user, event.at];
            execute(c, UPSERT, values)?;
            let mut get = c.prepare_cached(GET)?;
            let set = get.query_row(params![owner, name], view)?;
            audit::add(c, &event)?;
            Ok(Some(set))
        })
        .await
    }

    /// Secrets of a user and the shared ones, by name, as one of the lists of that user.
    pub async fn secret_list(&self, user: UserId) -> Result<Vec<SecretView>, StoreError> {
        self.list(user, move |c| {
            let mut statement = c.prepare_cached(LIST)?;
            let secrets = statement.query_map([user], view)?;
            Ok(secrets.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Removes a secret of this owner; false where there is none.
    pub async fn secret_remove(
        &self,
        owner: Option<UserId>,
        name: SecretName,
        by: Authority,
        event: AuditEvent,
    ) -> Result<bool, StoreError> {
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let sql = "DELETE FROM secrets WHERE owner = ?1 AND name = ?2";
            let removed = execute(c, sql, params![owner_text(owner), name])?;
            if removed > 0 {
                audit::add(c, &about(&event, owner, &name))?;
            }
            Ok(removed > 0)
        })
        .await
    }

    /// Secrets that a user's job gets by these names, in their order; `None` where there is none.
    pub async fn secrets_of_user(
        &self,
        user: UserId,
        names: Vec<SecretName>,
    ) -> Result<Vec<Option<SealedSecret>>, StoreError> {
        self.read_document(move |c| {
            let owner = user.to_string();
            names.iter().map(|name| sealed(c, &owner, name)).collect()
        })
        .await
    }

    /// Same for the user of a task.
    pub async fn secrets_of_task(
        &self,
        task: TaskId,
        names: Vec<SecretName>,
    ) -> Result<Vec<Option<SealedSecret>>, StoreError> {
        self.read_document(move |c| {
            let mut statement = c.prepare_cached("SELECT user_id FROM tasks WHERE id = ?1")?;
            let owner: Option<String> = statement.query_row([task], |row| row.get(0)).optional()?;
            let owner = owner.ok_or(StoreError::Damaged("task"))?;
            names.iter().map(|name| sealed(c, &owner, name)).collect()
        })
        .await
    }

    /// Ids of the keys with which secrets are encrypted, and with each the number of its secrets.
    pub async fn secret_keys_in_use(&self) -> Result<Vec<(String, u32)>, StoreError> {
        self.read_document(|c| {
            let mut statement = c.prepare(KEYS)?;
            let keys = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(keys.collect::<Result<Vec<(String, u32)>, _>>()?)
        })
        .await
    }

    /// Encrypts all secrets with another key, in one commit: `reseal` does it for each.
    pub async fn secret_reseal(
        &self,
        reseal: impl Fn(&SealedSecret) -> Resealed + Send + 'static,
        by: Authority,
        event: AuditEvent,
    ) -> Result<RotatedKey, StoreError> {
        self.write(move |c| {
            authorize(c, by, event.at)?;
            let mut statement = c.prepare_cached(ALL_NAMES)?;
            let names = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let names: Vec<(String, SecretName)> = names.collect::<Result<_, _>>()?;
            let (mut count, mut unreadable) = (0, 0);
            for (owner, name) in &names {
                let secret = sealed(c, owner, name)?.ok_or(StoreError::Damaged("secret"))?;
                match reseal(&secret) {
                    Resealed::Unchanged => count += 1,
                    Resealed::Unreadable => unreadable += 1,
                    Resealed::New(SecretSealing { key_id, bytes }) => {
                        let sql = "UPDATE secrets SET key_id = ?3, sealed = ?4 WHERE owner = ?1 AND name = ?2";
                        execute(c, sql, params![owner, name, key_id, bytes])?;
                        count += 1;
                    }
                }
            }
            let details = format!("{count} secrets; unreadable: {unreadable}");
            audit::add(c, &event.clone().with_details(details))?;
            Ok(RotatedKey {
                secrets: count,
                unreadable,
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests;
