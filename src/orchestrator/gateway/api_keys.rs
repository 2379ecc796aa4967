//! API keys: create, list, revoke. No key may do this: a stolen one can't make another.

use super::{AppState, authenticate, cursor, page_size};
use crate::{
    api::api_keys::CreateApiKey,
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
};
use http::StatusCode;
use std::sync::Arc;

/// Size of a page of keys where the caller gives none.
pub(super) const DEFAULT_PAGE_SIZE: u32 = 50;
/// Largest body of a new key.
const MAX_BODY_BYTES: usize = 16 * 1024;

pub(super) async fn create(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::Login).await?;
    request.limit_body(MAX_BODY_BYTES);
    let create: CreateApiKey = request.json().await?;
    let origin = request.origin();
    let created = state.identity.api_key_create(&caller, create, &origin);
    response::json(StatusCode::CREATED, &created.await?)
}

pub(super) async fn list(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::Login).await?;
    let limit = page_size(&request, DEFAULT_PAGE_SIZE)?;
    let keys = state
        .identity
        .api_key_list(&caller, cursor(&request)?, limit);
    response::ok(&keys.await?)
}

pub(super) async fn revoke(state: Arc<AppState>, request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::Login).await?;
    let (id, origin) = (request.param("id", "API key")?, request.origin());
    let revoked = state.identity.api_key_revoke(&caller, id, &origin);
    revoked.await?;
    response::no_content()
}
