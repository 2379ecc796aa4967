//! Identity of the orchestrator whose database this is.
//!
//! The id is part of the database: a restored backup is the same orchestrator and keeps its running jobs, and a
//! new database is another one.

use super::StoreError;
use crate::api::OrchestratorId;
use rusqlite::{Connection, OptionalExtension as _};

/// Id of the orchestrator; the first start creates it.
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
    use super::super::Store;

    #[test]
    fn id_is_unique_and_survives_restart() {
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
