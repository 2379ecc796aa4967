//! Identity of the orchestrator whose database this is.
//!
//! It is part of the database, so that a restored backup is the same orchestrator and keeps the jobs that
//! run for it, and a database that is made from nothing is another one.

use super::StoreError;
use crate::api::OrchestratorId;
use rusqlite::{Connection, OptionalExtension as _};

/// Reads the identity; the first start makes it.
pub(super) fn get_or_create(connection: &mut Connection) -> Result<OrchestratorId, StoreError> {
    let transaction = connection.transaction()?;
    let stored: Option<String> = transaction
        .query_row("SELECT id FROM orchestrator", [], |row| row.get(0))
        .optional()?;
    let id = match stored {
        Some(id) => OrchestratorId::try_from(id)
            .map_err(|_| StoreError::Damaged("orchestrator identity"))?,
        None => {
            let id = OrchestratorId::new();
            transaction.execute(
                "INSERT INTO orchestrator (id) VALUES (?1)",
                [id.to_string()],
            )?;
            id
        }
    };
    transaction.commit()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use crate::store::Store;

    #[test]
    fn identity_survives_a_restart_and_is_unique() {
        let home = tempfile::tempdir().unwrap();
        let open = |name| {
            Store::open(&home.path().join(name))
                .unwrap()
                .orchestrator_id
        };
        let first = open("a.db");
        assert_eq!(open("a.db"), first);
        assert_ne!(open("b.db"), first);
    }
}
