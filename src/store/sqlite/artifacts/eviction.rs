//! Choice of the uploads that make room for another one.
//!
//! An upload may go when no task needs it, no other artifact has its content, and it is not so new that its task may
//! still be on its way. The user's own go first: unfinished ones, then those of the same name, which the new one probably
//! replaces, then the oldest. Only a user within a fair share of the room takes some of others, and only of those beyond
//! theirs. Unfinished uploads count in the share.

use super::{Store, StoreError, audit};
use crate::{
    api::{
        ArtifactId, UserId,
        audit::{AuditAction, AuditEvent},
        time::Time,
    },
    store::{Evicted, RoomRequest},
};
use rusqlite::{Connection, params};
use std::collections::BTreeMap;

/// Most uploads of a user that are looked at.
const CANDIDATES_LIMIT: u32 = 1000;

/// Uploads of a user that may go, those of a name first.
const CANDIDATES: &str = "SELECT id, size_bytes FROM artifacts AS a
    WHERE user_id = ?1 AND task_id IS NULL AND created_at <= ?2
    AND NOT EXISTS (SELECT 1 FROM task_contents WHERE sha256 = a.sha256)
    AND NOT EXISTS (SELECT 1 FROM artifacts WHERE sha256 = a.sha256 AND id <> a.id)
    ORDER BY name <> ?3, created_at LIMIT ?4";
const BYTES_BY_USER: &str = "SELECT user_id, sum(size_bytes) FROM artifacts GROUP BY user_id";
const EVICT: &str =
    "DELETE FROM artifacts AS a WHERE id = ?1 AND task_id IS NULL AND created_at <= ?2
    AND NOT EXISTS (SELECT 1 FROM task_contents WHERE sha256 = a.sha256)";

/// Uploads that are to go.
#[derive(Default)]
struct Chosen {
    ids: Vec<ArtifactId>,
    unfinished: BTreeMap<UserId, u64>,
    /// Bytes of all of them.
    bytes: u64,
}

impl Chosen {
    /// Adds uploads of a user until `enough` bytes are chosen in all.
    fn add(
        &mut self,
        c: &Connection,
        request: &RoomRequest,
        user: UserId,
        enough: u64,
    ) -> Result<(), StoreError> {
        let idle = request.unfinished.get(&user).map_or(0, |bytes| bytes.idle);
        let unfinished = idle.min(enough.saturating_sub(self.bytes));
        if unfinished > 0 {
            self.unfinished.insert(user, unfinished);
            self.bytes += unfinished;
        }
        let values = params![user, request.keep_since, request.name, CANDIDATES_LIMIT];
        let mut statement = c.prepare_cached(CANDIDATES)?;
        let mut rows = statement.query(values)?;
        while self.bytes < enough
            && let Some(row) = rows.next()?
        {
            self.ids.push(row.get(0)?);
            self.bytes += unsigned(row.get(1)?);
        }
        Ok(())
    }
}

fn unsigned(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}

/// Chooses uploads; none where all that may go don't suffice.
fn choose(c: &Connection, request: &RoomRequest) -> Result<Chosen, StoreError> {
    let mut chosen = Chosen::default();
    chosen.add(c, request, request.owner, request.missing)?;
    if chosen.bytes < request.missing {
        let users = bytes_by_user(c, request)?;
        let share = request.quota / users.len() as u64;
        let own = users.get(&request.owner).copied().unwrap_or(0);
        let own = own.saturating_sub(chosen.bytes);
        if own.saturating_add(request.size) <= share {
            for (user, bytes) in users {
                let excess = bytes.saturating_sub(share);
                if user != request.owner && excess > 0 {
                    let enough = chosen.bytes.saturating_add(excess).min(request.missing);
                    chosen.add(c, request, user, enough)?;
                }
            }
        }
    }
    if chosen.bytes < request.missing {
        return Ok(Chosen::default());
    }
    Ok(chosen)
}

/// Bytes of each user who has any, and of the one who needs room.
fn bytes_by_user(
    c: &Connection,
    request: &RoomRequest,
) -> Result<BTreeMap<UserId, u64>, StoreError> {
    let mut statement = c.prepare_cached(BYTES_BY_USER)?;
    let users = statement.query_map([], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?;
    let mut users: BTreeMap<UserId, u64> = users.collect::<Result<_, _>>()?;
    users.entry(request.owner).or_default();
    for (user, bytes) in &request.unfinished {
        let sum = users.entry(*user).or_default();
        *sum = sum.saturating_add(bytes.all);
    }
    Ok(users)
}

/// Event of the audit log, by which an admin can tell a user where an upload has gone.
fn evicted(id: ArtifactId) -> AuditEvent {
    AuditEvent {
        reason: Some("evicted to make room".to_owned()),
        ..AuditEvent::new(AuditAction::ArtifactDelete, Time::now(), None).to(id.to_string())
    }
}

impl Store {
    /// Deletes uploads that make room for another one, or none where they would not suffice. The caller removes the
    /// unfinished ones.
    pub async fn artifacts_evict(&self, request: RoomRequest) -> Result<Evicted, StoreError> {
        let keep_since = request.keep_since;
        let chosen = self.read_long(move |c| choose(c, &request)).await?;
        let (ids, unfinished) = (chosen.ids, chosen.unfinished);
        let mut uploads = 0;
        if !ids.is_empty() {
            let deleted = self.write(move |c| {
                let mut statement = c.prepare_cached(EVICT)?;
                let mut count = 0;
                for id in &ids {
                    if statement.execute(params![id, keep_since])? > 0 {
                        count += 1;
                        audit::add(c, &evicted(*id))?;
                    }
                }
                Ok(count)
            });
            uploads = deleted.await?;
        }
        Ok(Evicted {
            uploads,
            unfinished,
        })
    }
}
