//! Sessions: login, refresh, logout, and the user of the session with their password.

use super::{AppState, authenticate};
use crate::{
    api::{
        auth::{Login, Logout, Refresh},
        users::ChangePassword,
    },
    http::{
        request::Request,
        response::{self, Reply},
    },
    identity::Access,
};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Largest body of a login, refresh or logout, most of which anybody may send.
const MAX_BODY_BYTES: usize = 16 * 1024;

pub(super) async fn login(state: Arc<AppState>, mut request: Request) -> Reply {
    request.limit_body(MAX_BODY_BYTES);
    let Login { handle, password } = request.json().await?;
    let (password, origin) = (Zeroizing::new(password), request.origin());
    let tokens = state.identity.login(handle, password, &origin);
    let tokens = tokens.await?;
    request.authorize_connection();
    response::ok(&tokens)
}

pub(super) async fn refresh(state: Arc<AppState>, mut request: Request) -> Reply {
    request.limit_body(MAX_BODY_BYTES);
    let Refresh { refresh_token } = request.json().await?;
    let origin = request.origin();
    let tokens = state.identity.refresh(&refresh_token, &origin);
    let tokens = tokens.await?;
    request.authorize_connection();
    response::ok(&tokens)
}

pub(super) async fn logout(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::Login).await?;
    request.limit_body(MAX_BODY_BYTES);
    let Logout { refresh_token } = request.json_or_default().await?;
    let origin = request.origin();
    let ended = state.identity.logout(&caller, refresh_token, &origin);
    ended.await?;
    response::no_content()
}

pub(super) async fn change_password(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = authenticate(&state, &request, Access::Login).await?;
    request.limit_body(MAX_BODY_BYTES);
    let change: ChangePassword = request.json().await?;
    let origin = request.origin();
    let changed = state.identity.change_password(&caller, change, &origin);
    changed.await?;
    response::no_content()
}

pub(super) async fn me(state: Arc<AppState>, request: Request) -> Reply {
    response::ok(&authenticate(&state, &request, Access::Login).await?.user)
}
