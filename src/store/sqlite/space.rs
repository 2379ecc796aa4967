//! Shrinking of the database file.
//!
//! Deleted rows leave free pages, which SQLite keeps for new rows. An incremental vacuum moves the last
//! pages of the file into them and truncates the file, in small steps between other writes, so that
//! none of those waits for long.

use super::{Store, StoreError};
use rusqlite::Connection;
use std::sync::{Arc, atomic::Ordering};

/// Number of free pages that are kept for the next writes.
const FREE_PAGES_KEPT: i64 = 64;
/// Number of pages of one step, 1 MiB.
const VACUUM_STEP_PAGES: i64 = 256;
/// Largest database of an earlier release that is rewritten at its first start, which takes seconds.
const MAX_REWRITE_BYTES: i64 = 256 << 20;

/// Enables incremental vacuum for a new database, before the first write.
pub(super) fn enable_incremental_vacuum(c: &Connection) -> rusqlite::Result<()> {
    c.pragma_update(None, "auto_vacuum", "INCREMENTAL")
}

/// Enables incremental vacuum for a database that was created without it, which rewrites the whole file. A
/// large one stays as it is; its backups have it enabled.
pub(super) fn rewrite_if_needed(c: &Connection) -> Result<(), StoreError> {
    let number = |name| c.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if number("auto_vacuum")? != 0 {
        return Ok(());
    }
    if number("page_count")?.saturating_mul(number("page_size")?) > MAX_REWRITE_BYTES {
        tracing::warn!(
            "database file cannot shrink; stop the orchestrator and restore a backup of it (cynode backup), which can"
        );
        return Ok(());
    }
    enable_incremental_vacuum(c)?;
    // Rewritten as a whole or not at all; a failure leaves it usable.
    if let Err(error) = c.execute_batch("VACUUM") {
        tracing::warn!(%error, "database file cannot shrink yet; retrying at the next start");
    }
    Ok(())
}

impl Store {
    /// Returns some of the free pages to the disk; whether there are more.
    pub async fn shrink(&self) -> Result<bool, StoreError> {
        let requested = Arc::clone(&self.truncate_requested);
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
            // Without progress another step would change nothing.
            let has_shrunk = after < before;
            let more = has_shrunk && after > FREE_PAGES_KEPT;
            if has_shrunk && !more {
                // The file shrinks when this commit is copied from the log.
                requested.store(true, Ordering::Relaxed);
            }
            Ok(more)
        })
        .await
    }
}
