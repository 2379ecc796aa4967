//! Giving back to the disk what was freed in the database.
//!
//! Rows that go leave free pages, which SQLite keeps for what comes. An incremental vacuum moves
//! the file's last pages into them and cuts the file. It is done in small steps between other
//! writes, so that none of those waits for long.

use super::{Store, StoreError};
use rusqlite::Connection;
use std::sync::{Arc, atomic::Ordering};

/// Free pages that are kept: what is written in a moment needs no new ones.
const FREE_PAGES_KEPT: i64 = 64;
/// Pages of one step, 1 MiB.
const VACUUM_STEP_PAGES: i64 = 256;
/// Largest database of an earlier release that is rewritten at its first start, in bytes: a matter of seconds.
const MAX_REWRITE_BYTES: i64 = 256 << 20;

/// Has a new database keep what an incremental vacuum needs. Comes before anything is written.
pub(super) fn enable_incremental_vacuum(c: &Connection) -> rusqlite::Result<()> {
    c.pragma_update(None, "auto_vacuum", "INCREMENTAL")
}

/// The same for a database that was made without it, which takes a rewrite of all of it. A large
/// one stays as it is; a copy made by a backup has it.
pub(super) fn rewrite_if_needed(c: &Connection) -> Result<(), StoreError> {
    let number = |name| c.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if number("auto_vacuum")? != 0 {
        return Ok(());
    }
    if number("page_count")?.saturating_mul(number("page_size")?) > MAX_REWRITE_BYTES {
        tracing::warn!(
            "this database can't give space back to the disk; stop the orchestrator, and restore a backup of it \
             (cynode backup), which can"
        );
        return Ok(());
    }
    enable_incremental_vacuum(c)?;
    // It is done whole or not at all, and does without as before.
    if let Err(error) = c.execute_batch("VACUUM") {
        tracing::warn!(%error, "this database can't give space back to the disk yet; the next start tries again");
    }
    Ok(())
}

impl Store {
    /// Gives back some of the free pages; whether there are more.
    pub async fn shrink(&self) -> Result<bool, StoreError> {
        let wanted = Arc::clone(&self.truncate_requested);
        self.write(move |c| {
            let free = || c.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
            let before = free()?;
            if before <= FREE_PAGES_KEPT {
                return Ok(false);
            }
            let pages = VACUUM_STEP_PAGES.min(before - FREE_PAGES_KEPT);
            let mut statement = c.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut steps = statement.query([])?;
            // Each step is a page.
            while steps.next()?.is_some() {}
            let after = free()?;
            // Where nothing can be given back, asking again changes nothing.
            let more = after > FREE_PAGES_KEPT && after < before;
            if !more && after < before {
                wanted.store(true, Ordering::Relaxed);
            }
            Ok(more)
        })
        .await
    }
}
