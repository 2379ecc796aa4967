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

pub(super) async fn login(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let Login { handle, password } = request.json().await?;
    response::ok(
        &orchestrator
            .identity
            .login(handle, password, request.connection.peer.ip())
            .await?,
    )
}

pub(super) async fn refresh(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let Refresh { refresh_token } = request.json().await?;
    response::ok(&orchestrator.identity.refresh(&refresh_token).await?)
}

pub(super) async fn logout(orchestrator: Arc<Orchestrator>, mut request: Request) -> Reply {
    let caller = caller(&orchestrator, &request).await?;
    let Logout { refresh_token } = request.json_or_default().await?;
    orchestrator.identity.logout(&caller, refresh_token).await?;
    response::no_content()
}

pub(super) async fn me(orchestrator: Arc<Orchestrator>, request: Request) -> Reply {
    response::ok(&caller(&orchestrator, &request).await?.user)
}
