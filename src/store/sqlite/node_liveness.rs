//! Silent nodes, and acknowledgements that expire.

use super::{
    Node, Store, StoreError,
    nodes::{SELECT, node},
};
use crate::api::{NodeId, time::Time};

impl Store {
    /// Nodes whose last call was before `since`, the latest first.
    pub async fn node_list_silent(&self, since: Time) -> Result<Vec<Node>, StoreError> {
        let reports = self.reports.clone();
        self.read(move |c| {
            let sql = format!("{SELECT} WHERE n.last_seen_at < ?1 ORDER BY n.last_seen_at DESC");
            let mut statement = c.prepare_cached(&sql)?;
            let mut rows = statement.query([since])?;
            let mut nodes = Vec::new();
            while let Some(row) = rows.next()? {
                nodes.push(node(row, &reports)?);
            }
            Ok(nodes)
        })
        .await
    }

    /// Deletes the acknowledgements of these nodes, so that each has to send another one.
    pub async fn node_acks_expire(&self, nodes: Vec<NodeId>) -> Result<(), StoreError> {
        self.write(move |c| {
            let sql = "UPDATE nodes SET ack_version = NULL, ack_status = NULL, ack_error = NULL, ack_at = NULL WHERE id = ?1";
            let mut statement = c.prepare_cached(sql)?;
            for node in &nodes {
                statement.execute([node])?;
            }
            Ok(())
        })
        .await
    }
}
