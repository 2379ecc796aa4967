//! Snapshot of a running sandbox, which its node makes.
//!
//! ```text
//! find ──▶ wait for it to run ──▶ is the name free elsewhere? ──▶ node: POST …/snapshot ──▶ note the image in its report
//! ```
//!
//! Nothing of a snapshot is stored here: nodes list theirs, and their reports name the images. The image is noted in the
//! report that is known, so that the next call finds it before the node reports again. A node goes on with a snapshot
//! where the caller, or this process, does not wait for it.

use super::{
    answer::{self, RETRY_SECONDS},
    body, find,
    pass::{self, PassCaller},
    snapshot_list::{self, Owners},
    target::{Place, Target, TargetLoss, target},
};
use crate::{
    api::{
        UserId,
        audit::{AuditAction, RequestOrigin},
        error::ApiError,
        nodes::{check_slug, features},
        problem::{Problem, ProblemKind},
        snapshots::{CreateSnapshot, SaveSnapshot, Snapshot, StoredSnapshot, image_of},
    },
    background::run_to_end,
    errors,
    http::request::parse_json,
    orchestrator::{
        AppState,
        node_client::{NodeClient, SessionCall},
        nodes,
    },
    store::Node,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Longest time for a node to make a snapshot.
const SAVE_TIMEOUT: Duration = Duration::from_mins(30);
/// Time for the body of its answer.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of its answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Saves the workspace and the changed files of a sandbox as a snapshot of its user, which replaces one of this name on
/// the same node.
///
/// Fails with 410 where the sandbox has ended, and with 409 where the user has this name on another node, one of this name
/// is being made, or the node can't make snapshots.
pub(in crate::orchestrator) async fn take(
    state: &Arc<AppState>,
    caller: PassCaller,
    name: String,
    create: CreateSnapshot,
    origin: &RequestOrigin,
) -> Result<Snapshot, ApiError> {
    check_slug("/name", &create.name)?;
    let permit = state.pass_limits.acquire(caller.caller.user.id)?;
    let stored = find(state, &caller.caller, name).await?;
    let owner = stored.user;
    let id = stored.id.to_string();
    let target = target(state, &caller.caller, Place::Sandbox, id).await?;
    let node = state.store.node_get(target.node).await?;
    let node = node.ok_or_else(|| pass::silent("that has the sandbox"))?;
    let image = image_of(owner, &create.name);
    let claim = state.snapshot_claims.claim(&image);
    let claim = claim.ok_or_else(|| being_made(&create.name))?;
    check_place(state, &node, &create.name, &image).await?;
    let subject = format!("snapshot {}", create.name);
    let action = AuditAction::SandboxSnapshot;
    let event = pass::event(&caller.caller, &target, action, origin, &subject);
    let shared = Arc::clone(state);
    let made = run_to_end("take_snapshot", async move {
        // For as long as the node is at it, also where the caller hangs up.
        let _held = (permit, claim);
        let made = make(&shared, caller, (&target, &node), owner, &image).await;
        let event = match &made {
            Ok(_) => event,
            Err(error) => event.refused(error.problem()),
        };
        shared.identity.record_audit(event).await?;
        made
    });
    made.await.map_err(ApiError::internal)?
}

/// Has the node make the snapshot, and notes it in the node's report.
async fn make(
    state: &Arc<AppState>,
    caller: PassCaller,
    (target, node): (&Target, &Node),
    owner: UserId,
    image: &str,
) -> Result<Snapshot, ApiError> {
    let saved = save(state, caller, (target, node), image).await?;
    let snapshot = snapshot_list::shown(&node.slug, &Owners::one(owner), &saved)
        .filter(|_| saved.image == image)
        .ok_or_else(|| unclear(&node.slug))?;
    note(state, node, image, true).await;
    let snapshot = Snapshot {
        owner: target.foreign_owner.clone(),
        ..snapshot
    };
    tracing::info!(sandbox = %target.id, node = node.slug, size = saved.size_bytes, "snapshot made");
    Ok(snapshot)
}

/// Notes in the report of a node that it has an image, or has not. Where that fails, its next report says so.
pub(super) async fn note(state: &AppState, node: &Node, image: &str, is_there: bool) {
    let image = image.to_owned();
    let noted = state.store.node_set_local_image(node.id, image, is_there);
    if let Err(error) = noted.await {
        let (node, error) = (&node.slug, errors::chain(&error));
        tracing::warn!(
            node,
            error,
            "snapshots of a node are unknown until its next report"
        );
    }
    state.jobs.wake.notify_one();
}

/// Fails where the node can't make snapshots, or another one has a snapshot of this image.
async fn check_place(
    state: &AppState,
    node: &Node,
    name: &str,
    image: &str,
) -> Result<(), ApiError> {
    let slug = &node.slug;
    if !node.capability.has_feature(features::SNAPSHOTS) {
        let detail = format!(
            "node {slug}, which has the sandbox, can't make snapshots: its cynode is too old; update it"
        );
        return Err(Problem::new(ProblemKind::Conflict, detail).into());
    }
    let nodes = state.store.node_list().await?;
    let has_image = |other: &&Node| other.id != node.id && other.capability.has_local_image(image);
    let Some(other) = nodes.iter().find(has_image) else {
        return Ok(());
    };
    let detail = format!(
        "the snapshot {name} is on node {}, and the sandbox on node {slug}; choose another name, or delete that one first \
         (cynode sandbox rm-snapshot {name})",
        other.slug
    );
    let problem = Problem::new(ProblemKind::Conflict, detail);
    Err(problem.about("name").into())
}

/// Has the node make the snapshot. Given up where the caller's access ends, and where the sandbox or the node is lost.
async fn save(
    state: &Arc<AppState>,
    caller: PassCaller,
    (target, node): (&Target, &Node),
    image: &str,
) -> Result<StoredSnapshot, ApiError> {
    let client = nodes::online_client(state, node).map_err(|_| pass::silent(&node.slug))?;
    let access_end = pass::access_end(state, caller);
    tokio::select! {
        biased;
        saved = timeout(SAVE_TIMEOUT, call(&client, target, image)) => {
            saved.map_err(|_| unclear(&node.slug))?
        }
        () = access_end => Err(pass::access_ended().into()),
        loss = target.lost() => Err(match loss {
            TargetLoss::Unreachable => unclear(&node.slug),
            TargetLoss::Ended => target.gone(state).await,
        }
        .into()),
    }
}

async fn call(
    client: &NodeClient<'_>,
    target: &Target,
    image: &str,
) -> Result<StoredSnapshot, ApiError> {
    let slug = client.slug();
    let save = SaveSnapshot {
        image: image.to_owned(),
    };
    let body = serde_json::to_vec(&save).map_err(ApiError::internal)?;
    let json = HeaderValue::from_static("application/json");
    let session_call = SessionCall {
        method: Method::POST,
        job: target.job,
        path: "snapshot".to_owned(),
        headers: HeaderMap::from_iter([(header::CONTENT_TYPE, json)]),
    };
    let answer = client.pass(session_call, body::whole(body, None)).await;
    let answer = answer.map_err(|error| unclear(slug).caused_by(error))?;
    if answer.status() != StatusCode::CREATED {
        return Err(answer::problem(answer, slug).await.into());
    }
    let document = timeout(BODY_TIMEOUT, document(answer)).await;
    let document = document.ok().flatten();
    Ok(document.ok_or_else(|| unclear(slug))?)
}

/// Document of a success; `None` where it breaks off, is too long or is no snapshot.
async fn document(answer: http::Response<Incoming>) -> Option<StoredSnapshot> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.ok()?.to_bytes();
    parse_json(&body).ok()
}

/// Problem of a snapshot while one of its name is being made.
fn being_made(name: &str) -> Problem {
    let detail = format!(
        "another call makes the snapshot {name} now; wait until that has ended, or choose another name"
    );
    Problem::new(ProblemKind::Conflict, detail).about("name")
}

/// Problem of a snapshot that may have been made.
fn unclear(slug: &str) -> Problem {
    let detail = format!(
        "the node {slug} did not say whether it made the snapshot, and may make it yet; look with cynode sandbox \
         snapshots, or make it again"
    );
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_SECONDS)
}
