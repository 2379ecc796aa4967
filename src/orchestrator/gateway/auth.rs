//! Login, sessions, and who one is.

use super::{Orchestrator, caller};
use crate::{
    api::auth::{Login, Logout, Refresh},
    http::{
        request::Request,
        response::{self, Reply},
    },
};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Longest body of a login, a refresh or a logout, most of which anybody may send.
const MAX_BODY_BYTES: usize = 16 * 1024;

pub(super) async fn login(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    request.limit_body(MAX_BODY_BYTES);
    let Login { handle, password } = request.json().await?;
    let (password, origin) = (Zeroizing::new(password), request.origin());
    let tokens = orchestrator.identity.login(handle, password, &origin);
    let tokens = tokens.await?;
    request.authorize_connection();
    response::ok(&tokens)
}

pub(super) async fn refresh(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    request.limit_body(MAX_BODY_BYTES);
    let Refresh { refresh_token } = request.json().await?;
    let origin = request.origin();
    let tokens = orchestrator.identity.refresh(&refresh_token, &origin);
    let tokens = tokens.await?;
    request.authorize_connection();
    response::ok(&tokens)
}

pub(super) async fn logout(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let caller = caller(&orchestrator, &request).await?;
    request.limit_body(MAX_BODY_BYTES);
    let Logout { refresh_token } = request.json_or_default().await?;
    let origin = request.origin();
    let ended = orchestrator
        .identity
        .logout(&caller, refresh_token, &origin);
    ended.await?;
    response::no_content()
}

pub(super) async fn me(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    response::ok(&caller(&orchestrator, &request).await?.user)
}
