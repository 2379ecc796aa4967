//! Upgrade of a node's connection to its tunnel.

use super::{AppState, authenticate_request, check_instance};
use crate::{
    api::{
        INSTANCE_HEADER, is_valid_instance_id,
        problem::{Problem, ProblemKind},
    },
    http::{
        request::Request,
        response::Reply,
        router::RouterBuilder,
        tunnel::PROTOCOL,
        upgrade::{self, UpgradedStream},
    },
    orchestrator::tunnels,
};
use http::{HeaderValue, Method, header};
use std::{sync::Arc, time::Instant};

/// Path of tunnels.
pub(super) const PATH: &str = "/v1/nodes/tunnel";

/// Adds the call to a router.
pub(super) fn routes(builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    builder.route(Method::GET, PATH, open)
}

async fn open(state: Arc<AppState>, mut request: Request) -> Reply {
    let node = authenticate_request(&state, &mut request).await?;
    let protocol = request.header(header::UPGRADE.as_str());
    if protocol.is_none_or(|protocol| !protocol.trim().eq_ignore_ascii_case(PROTOCOL)) {
        return Err(upgrade_required().into());
    }
    let instance = request.header(INSTANCE_HEADER);
    let instance = instance.filter(|instance| is_valid_instance_id(instance));
    check_instance(&state, node.id, &node.slug, instance, &request.origin()).await?;
    let slot = state.nodes.tunnels.admit(node.id, Instant::now())?;
    // The connections that its network may have are for other calls, such as reports.
    request.mark_limited_elsewhere();
    let protocol = HeaderValue::from_static(PROTOCOL);
    let serve = move |stream: UpgradedStream| async move {
        tunnels::serve(state, node, stream).await;
        drop(slot);
    };
    Ok(upgrade::accept(protocol, serve))
}

fn upgrade_required() -> Problem {
    let detail = format!(
        "this call opens a tunnel, with the headers Connection: upgrade and Upgrade: {PROTOCOL}; a proxy in between has to \
         pass them on"
    );
    Problem::new(ProblemKind::UpgradeRequired, detail).with_header("upgrade", PROTOCOL.to_owned())
}
