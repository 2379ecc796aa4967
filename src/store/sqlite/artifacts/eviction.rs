//! Choice of the uploads that make room for another one.
//!
//! An upload may go when no task needs it, no other artifact has its content, and it is not so new that its task may
//! still be on its way. The user's own go first: those of the same name, which the new one probably replaces, then the
//! oldest. Only a user within a fair share of the room takes some of others, and only of those beyond theirs.

use super::{Store, StoreError};
use crate::{
    api::{ArtifactId, UserId},
    store::RoomRequest,
};
use rusqlite::{Connection, params};

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
fn choose(c: &Connection, request: &RoomRequest) -> Result<Vec<ArtifactId>, StoreError> {
    let mut chosen = Chosen::default();
    chosen.add(c, request, request.owner, request.missing)?;
    if chosen.bytes < request.missing {
        let mut statement = c.prepare_cached(BYTES_BY_USER)?;
        let users = statement.query_map([], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?;
        let mut users: Vec<(UserId, u64)> = users.collect::<Result<_, _>>()?;
        if users.iter().all(|(user, _)| *user != request.owner) {
            users.push((request.owner, 0));
        }
        let share = request.quota / users.len() as u64;
        let own = users.iter().find(|(user, _)| *user == request.owner);
        let own = own.map_or(0, |(_, bytes)| bytes.saturating_sub(chosen.bytes));
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
        chosen.ids.clear();
    }
    Ok(chosen.ids)
}

impl Store {
    /// Deletes uploads that make room for another one, or none where they would not suffice. Returns their number.
    pub async fn artifacts_evict(&self, request: RoomRequest) -> Result<usize, StoreError> {
        let keep_since = request.keep_since;
        let chosen = self.read_long(move |c| choose(c, &request)).await?;
        if chosen.is_empty() {
            return Ok(0);
        }
        self.write(move |c| {
            let mut statement = c.prepare_cached(EVICT)?;
            let mut count = 0;
            for id in &chosen {
                count += statement.execute(params![id, keep_since])?;
            }
            Ok(count)
        })
        .await
    }
}
