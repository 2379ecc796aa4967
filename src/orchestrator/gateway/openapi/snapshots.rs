//! Operations of snapshots.

use super::{
    operation::{Operation, operation},
    schemas::{any_text, schema_of},
};
use crate::api::snapshots::{CreateSnapshot, Snapshot, SnapshotList};
use http::Method;

const CREATE: &str = "\
The snapshot has the files in `/workspace` and those that changed in the image; processes are not saved. It stays on the node \
of the sandbox, and `image: \"snapshot:NAME\"` starts a task or a sandbox from it there. One of the same name is replaced. The \
answer comes when it is made, which may take minutes; it is made also where the caller does not wait.";

const DELETE: &str = "\
409 while a sandbox uses it, and while queued tasks or sandboxes of its user wait for it, unless `force` is true: they end as \
failed then, since no other node can run them.";

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            Method::POST,
            "/v1/sandboxes/{id}/snapshot",
            "create_snapshot",
            "Save the files of a running sandbox as a snapshot",
        )
        .described(CREATE)
        .body::<CreateSnapshot>()
        .creates::<Snapshot>()
        .fails_with(410)
        .fails_with(502)
        .fails_with(507),
        operation(
            Method::GET,
            "/v1/snapshots",
            "list_snapshots",
            "List your snapshots, by name, as their nodes have them now",
        )
        .query(
            "user",
            "Snapshots of the user of this handle, or of `all` users, with their `owner`. Admins only.",
            any_text,
        )
        .fails_with(404)
        .returns::<SnapshotList>(),
        operation(
            Method::DELETE,
            "/v1/snapshots/{name}",
            "delete_snapshot",
            "Delete a snapshot that no sandbox uses",
        )
        .described(DELETE)
        .query(
            "force",
            "Delete it also where queued tasks or sandboxes wait for it: they fail.",
            schema_of::<bool>,
        )
        .query("user", "Handle of the user whose snapshot it is. Admins only.", any_text)
        .fails_with(409),
    ]
}
