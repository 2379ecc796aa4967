//! Schema versions, and the way from one to the next.

use super::StoreError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Step *n* brings a database of version *n* to *n + 1*; step 0 makes an empty one.
const STEPS: &[&str] = &[include_str!("../../schema.sql")];

/// Brings the database to the version of [`STEPS`], in one transaction that sets the version too.
pub(super) fn run(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = STEPS.len() as i64;
    let todo = usize::try_from(found)
        .ok()
        .and_then(|found| STEPS.get(found..))
        .ok_or_else(|| StoreError::TooNew {
            path: path.to_owned(),
            found,
            known,
        })?;
    for step in todo {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}
