//! Snapshots: make one of a sandbox, list them, delete them.

use super::target::Target;
use crate::{
    api::{
        snapshots::{CreateSnapshot, Snapshot, SnapshotList},
        users::ALL_USERS,
    },
    cli::{OutputFormat, SandboxSnapshotArgs, SnapshotListArgs, SnapshotsArgs},
    client::{
        api_client::ApiClient,
        many,
        print::{self, clean, note},
    },
    exit::Failure,
    http::query::encode,
};
use http::Method;
use std::time::Duration;

/// Longest time for a snapshot to be made: a bit more than the orchestrator gives its node.
const SAVE_TIMEOUT: Duration = Duration::from_mins(31);
/// Time for a snapshot to be deleted, with its files.
const DELETE_TIMEOUT: Duration = Duration::from_mins(3);

/// `cynode sandbox snapshot`.
pub(super) fn save(args: &SandboxSnapshotArgs) -> Result<(), Failure> {
    let body = CreateSnapshot {
        name: args.name.clone(),
    };
    let mut api = ApiClient::from_args(&args.client)?.with_patience(SAVE_TIMEOUT);
    let path = Target::sandbox(&args.sandbox).path("/snapshot");
    let snapshot: Snapshot = api.call(Method::POST, &path, Some(&body))?;
    match args.client.output {
        OutputFormat::Json => print::json(&snapshot),
        OutputFormat::Text => {
            print::line(&clean(&snapshot.image))?;
            let size = print::size(snapshot.size_bytes);
            let owner = snapshot.owner.as_deref();
            let who = owner.map_or_else(String::new, |owner| {
                format!("it belongs to {0}, and only {0} can ", clean(owner))
            });
            note(&format!(
                "{size} on node {}; {who}start from it with: cynode sandbox create --image {}",
                clean(&snapshot.node_slug),
                clean(&snapshot.image)
            ));
            Ok(())
        }
    }
}

/// `cynode sandbox snapshots`.
pub(super) fn list(args: &SnapshotListArgs) -> Result<(), Failure> {
    let users = args.user.as_deref().or(args.all.then_some(ALL_USERS));
    let query = users.map_or_else(String::new, |users| format!("?user={}", encode(users)));
    let path = format!("/v1/snapshots{query}");
    let list: SnapshotList = ApiClient::from_args(&args.client)?.get(&path)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&list);
    }
    let row = |snapshot: &Snapshot| {
        [
            clean(&snapshot.name),
            clean(&snapshot.node_slug),
            print::size(snapshot.size_bytes),
            snapshot.created_at.to_string(),
        ]
    };
    let snapshots = list.snapshots.iter();
    if users.is_some() {
        let rows = snapshots.map(|snapshot| {
            let [name, node, size, created] = row(snapshot);
            let owner = clean(snapshot.owner.as_deref().unwrap_or_default());
            [owner, name, node, size, created]
        });
        print::table(["OWNER", "NAME", "NODE", "SIZE", "CREATED"], rows)?;
    } else {
        print::table(["NAME", "NODE", "SIZE", "CREATED"], snapshots.map(row))?;
    }
    if !list.unreachable_nodes.is_empty() {
        let nodes = clean(&list.unreachable_nodes.join(", "));
        note(&format!(
            "not listed, since they do not answer: nodes {nodes}"
        ));
    }
    Ok(())
}

/// `cynode sandbox rm-snapshot`.
pub(super) fn remove(args: &SnapshotsArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?.with_patience(DELETE_TIMEOUT);
    let user = args.user.as_deref();
    let user = user.map_or_else(String::new, |user| format!("&user={}", encode(user)));
    let query = format!("?force={}{user}", args.force);
    let path = |name: &str| format!("/v1/snapshots/{}{query}", encode(name));
    many::delete(&mut api, args.client.output, &args.names, "removed", path)
}
