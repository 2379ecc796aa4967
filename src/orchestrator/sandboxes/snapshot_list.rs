//! Snapshots as the nodes list them: those of the caller, and for an admin those of others.
//!
//! All nodes are asked at once, each for a short time. What they answer is hostile: only images of known users with a valid
//! name count.

use crate::{
    api::{
        UserId,
        error::ApiError,
        nodes::{check_slug, features},
        problem::Problem,
        snapshots::{PREFIX, Snapshot, SnapshotList, StoredSnapshot, user_and_name},
        time::Time,
        users::ALL_USERS,
    },
    identity::Caller,
    orchestrator::{AppState, nodes},
    store::Node,
};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::time::timeout;

/// Time for a node to list its snapshots.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest size that passes: the largest whole number that all readers of JSON have.
const MAX_SIZE_BYTES: u64 = 1 << 53;

/// Users whose snapshots a call is about, each with the handle that they show as their owner, if any.
pub(super) struct Owners(HashMap<UserId, Option<String>>);

impl Owners {
    /// One user, whose snapshots show no owner.
    pub(super) fn one(user: UserId) -> Self {
        Self(HashMap::from([(user, None)]))
    }

    /// Users that an admin names: one by a handle, or all. Fails with 404 where there is none.
    async fn named(state: &AppState, caller: &Caller, name: &str) -> Result<Self, ApiError> {
        if name == ALL_USERS {
            let handles = state.store.user_handles(caller.user.id).await?.into_iter();
            return Ok(Self(
                handles.map(|(id, handle)| (id, Some(handle))).collect(),
            ));
        }
        let (id, handle) = user_of_handle(state, name).await?;
        Ok(Self(HashMap::from([(id, Some(handle))])))
    }

    /// Whether an image is a snapshot of one of them.
    fn have(&self, image: &str) -> bool {
        user_and_name(image).is_some_and(|(user, _)| self.0.contains_key(&user))
    }
}

/// Id and handle of the user of a handle. Fails with 404 where there is none.
pub(super) async fn user_of_handle(
    state: &AppState,
    handle: &str,
) -> Result<(UserId, String), ApiError> {
    let found = state.store.user_by_handle(handle.to_owned()).await?;
    let user = found.ok_or_else(|| Problem::not_found("user"))?.user;
    Ok((user.id, user.handle))
}

/// Snapshots on all nodes that answered, by owner, name and node.
pub(super) struct Found {
    pub(super) snapshots: Vec<(Node, Snapshot)>,
    /// Nodes that did not answer, and may have others.
    pub(super) unreachable: Vec<Node>,
}

/// Lists the snapshots of the caller, or those of the users that an admin names: a handle, or `all`.
pub(in crate::orchestrator) async fn list(
    state: &AppState,
    caller: &Caller,
    users: Option<String>,
) -> Result<SnapshotList, ApiError> {
    let owners = match users {
        Some(name) => Owners::named(state, caller, &name).await?,
        None => Owners::one(caller.user.id),
    };
    let found = find(state, &owners).await?;
    let snapshots = found.snapshots.into_iter();
    Ok(SnapshotList {
        snapshots: snapshots.map(|(_, snapshot)| snapshot).collect(),
        unreachable_nodes: found
            .unreachable
            .into_iter()
            .map(|node| node.slug)
            .collect(),
    })
}

/// Whether a node can make snapshots, and so may have some.
pub(super) fn can_save(node: &Node) -> bool {
    node.capability.has_feature(features::SNAPSHOTS)
}

/// Asks all nodes for the snapshots of these users.
pub(super) async fn find(state: &AppState, owners: &Owners) -> Result<Found, ApiError> {
    let nodes = state.store.node_list().await?;
    let asked = nodes.into_iter().filter(can_save).map(|node| async move {
        let answer = list_at(state, &node).await;
        (node, answer)
    });
    let mut found = Found {
        snapshots: Vec::new(),
        unreachable: Vec::new(),
    };
    for (node, answer) in join_all(asked).await {
        match answer {
            Ok(stored) => {
                let owned = owned(&node.slug, owners, &stored).into_values();
                let owned = owned.map(|snapshot| (node.clone(), snapshot));
                found.snapshots.extend(owned);
            }
            Err(NoAnswer::Silent) => found.unreachable.push(node),
            Err(NoAnswer::Offline) if names_owned(&node, owners) => found.unreachable.push(node),
            Err(NoAnswer::Offline) => {}
        }
    }
    found.snapshots.sort_by_cached_key(|(_, snapshot)| {
        let Snapshot {
            owner,
            name,
            node_slug,
            ..
        } = snapshot;
        (owner.clone(), name.clone(), node_slug.clone())
    });
    Ok(found)
}

/// Whether the last report of a node names a snapshot of these users.
fn names_owned(node: &Node, owners: &Owners) -> bool {
    let images = node.capability.local_images().unwrap_or_default();
    images.iter().any(|image| owners.have(image))
}

/// Reason for which a node's snapshots are unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NoAnswer {
    /// It was not asked.
    Offline,
    /// It was asked, and did not answer as it should.
    Silent,
}

async fn list_at(state: &AppState, node: &Node) -> Result<Vec<StoredSnapshot>, NoAnswer> {
    let client = nodes::online_client(state, node).map_err(|_| NoAnswer::Offline)?;
    match timeout(LIST_TIMEOUT, client.snapshots()).await {
        Ok(Ok(listed)) => Ok(listed.snapshots),
        Ok(Err(error)) => {
            tracing::warn!(node = node.slug, %error, "node did not list its snapshots");
            Err(NoAnswer::Silent)
        }
        Err(_) => Err(NoAnswer::Silent),
    }
}

/// Snapshots of these users among those of a node, by owner and name.
fn owned(
    slug: &str,
    owners: &Owners,
    stored: &[StoredSnapshot],
) -> BTreeMap<(Option<String>, String), Snapshot> {
    let owned = stored.iter().filter_map(|stored| {
        let snapshot = shown(slug, owners, stored)?;
        Some(((snapshot.owner.clone(), snapshot.name.clone()), snapshot))
    });
    owned.collect()
}

/// Snapshot of one of these users as the node of this slug stores it; `None` where it is another's, or is not valid.
pub(super) fn shown(slug: &str, owners: &Owners, stored: &StoredSnapshot) -> Option<Snapshot> {
    let (user, name) = user_and_name(&stored.image)?;
    let owner = owners.0.get(&user)?;
    check_slug("", name).ok()?;
    Some(Snapshot {
        name: name.to_owned(),
        image: format!("{PREFIX}{name}"),
        node_slug: slug.to_owned(),
        owner: owner.clone(),
        size_bytes: stored.size_bytes.min(MAX_SIZE_BYTES),
        // The clock of the node may be ahead.
        created_at: stored.created_at.min(Time::now()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::snapshots::image_of;

    fn stored(image: String) -> StoredSnapshot {
        StoredSnapshot {
            image,
            image_id: String::new(),
            size_bytes: u64::MAX,
            created_at: Time::now().plus(Duration::from_hours(9)),
        }
    }

    #[test]
    fn only_valid_snapshots_of_user_count() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let all = [
            stored(image_of(ann, "b")),
            stored(image_of(ann, "a")),
            stored(image_of(ann, "a")),
            stored(image_of(bob, "c")),
            stored(image_of(ann, "\u{1b}[2J")),
            stored(image_of(ann, "")),
            stored("localhost/tool:1".to_owned()),
        ];
        let own: Vec<_> = owned("box", &Owners::one(ann), &all)
            .into_values()
            .collect();
        let names: Vec<_> = own.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let shown = &own[0];
        assert_eq!(shown.image, "snapshot:a");
        assert_eq!(shown.node_slug, "box");
        assert_eq!(shown.owner, None);
        assert_eq!(shown.size_bytes, MAX_SIZE_BYTES);
        assert!(shown.created_at <= Time::now());
    }

    #[test]
    fn owners_of_snapshots_are_known_users() {
        let (ann, bob, stranger) = (UserId::new(), UserId::new(), UserId::new());
        let handles = [(ann, Some("ann".to_owned())), (bob, Some("bob".to_owned()))];
        let owners = Owners(HashMap::from(handles));
        let all = [bob, stranger, ann].map(|user| stored(image_of(user, "a")));
        let shown = owned("box", &owners, &all).into_values();
        let shown: Vec<_> = shown.map(|one| (one.owner.unwrap(), one.name)).collect();
        let expected = ["ann", "bob"].map(|owner| (owner.to_owned(), "a".to_owned()));
        assert_eq!(shown, expected);
        assert!(owners.have(&image_of(bob, "x")) && !owners.have(&image_of(stranger, "x")));
    }
}
