//! Conversions between columns and domain types.

use super::{Placement, StoreError};
use crate::api::{
    ApiKeyId, ArtifactId, JobId, JoinTokenId, NodeId, SessionId, TaskId, UserId,
    jobs::files::ContentHash, secrets::SecretName, time::Time,
};
use rusqlite::{
    Connection, Params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef},
};
use serde::{Serialize, de::DeserializeOwned};

macro_rules! text_columns {
    ($($id:ty),*) => {$(
        impl ToSql for $id {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.to_string().into())
            }
        }

        impl FromSql for $id {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                value.as_str()?.parse().map_err(|error| FromSqlError::Other(Box::new(error)))
            }
        }
    )*};
}

text_columns!(
    UserId,
    SessionId,
    TaskId,
    JobId,
    NodeId,
    ApiKeyId,
    ArtifactId,
    JoinTokenId,
    ContentHash,
    SecretName
);

impl ToSql for Placement {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.canonical().into())
    }
}

impl FromSql for Placement {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

impl ToSql for Time {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_millis().into())
    }
}

impl FromSql for Time {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self::from_millis)
    }
}

/// Value of an enum, parsed from its name on the wire.
pub(super) fn parse_name<T: DeserializeOwned>(
    name: String,
    what: &'static str,
) -> Result<T, StoreError> {
    serde_json::from_value(serde_json::Value::String(name)).map_err(|_| StoreError::Damaged(what))
}

/// Value of a document column.
pub(super) fn parse_document<T: DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    Ok(serde_json::from_str(json)?)
}

/// Text for a document column.
pub(super) fn to_document(value: &impl Serialize) -> Result<String, StoreError> {
    Ok(serde_json::to_string(value)?)
}

/// Runs a statement that is prepared once for each connection, and returns the number of rows that it changed.
pub(super) fn execute(c: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
    c.prepare_cached(sql)?.execute(params)
}
