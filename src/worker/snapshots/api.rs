//! Calls of the Worker API about the snapshots of a node. One is made by a call about its sandbox
//! ([`sessions`](super::super::sessions)).

use super::remove::remove;
use crate::{
    api::{
        image::ImageRef,
        problem::{Problem, ProblemKind},
        snapshots::StoredSnapshots,
    },
    http::{
        request::Request,
        response::{self, Reply},
        router::RouterBuilder,
    },
    worker::api::Api,
};
use http::Method;
use std::sync::Arc;

/// Adds the routes.
pub(in crate::worker) fn routes(router: RouterBuilder<Api>) -> RouterBuilder<Api> {
    router
        .route(Method::GET, "/v1/worker/snapshots", list)
        .route(Method::DELETE, "/v1/worker/snapshots", delete)
}

async fn list(api: Arc<Api>, request: Request) -> Reply {
    api.authorize(&request)?;
    let snapshots = api.ctx.snapshots.list();
    response::ok(&StoredSnapshots { snapshots })
}

async fn delete(api: Arc<Api>, request: Request) -> Reply {
    let owner = api.authorize_long(&request)?;
    api.ensure_sole_orchestrator(owner.as_ref())?;
    let expected = "the image of a snapshot";
    let image = request.query_if("image", expected, ImageRef::is_snapshot)?;
    let missing = || Problem::new(ProblemKind::InvalidRequest, "image is missing in the query");
    let image = image.ok_or_else(missing)?;
    // Goes on when the caller leaves: half a removal must not stay on disk.
    let ctx = Arc::clone(&api.ctx);
    let removed = async move { remove(&ctx, &image).await };
    let removed = api.job_tasks.run_to_end("remove_snapshot", removed).await;
    removed.map_err(|_| Problem::internal())??;
    response::no_content()
}
