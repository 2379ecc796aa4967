//! Use cases of join tokens for admins. What a token holds for its node is known here: the URL of the control plane
//! and its pin; the rest is [`identity`](crate::identity).

use super::{AppState, bootstrap::JoinUrl, scheme};
use crate::{
    api::{
        JoinTokenId,
        audit::RequestOrigin,
        error::ApiError,
        nodes::{CreateJoinToken, CreatedJoinToken, JoinTokenList, JoinTokenStatus, JoinTokenView},
        problem::Problem,
        time::Time,
    },
    identity::Caller,
    tls::{Pin, is_encrypted},
};

/// Creates a token. Fails with 400 where it names no URL and other machines can't reach the one that is known, and where
/// the URL or the wish for a pin does not fit the encryption of the control plane.
pub(super) async fn create(
    state: &AppState,
    admin: &Caller,
    create: CreateJoinToken,
    origin: &RequestOrigin,
) -> Result<CreatedJoinToken, ApiError> {
    create.check(Time::now())?;
    let url = join_url(state, create.url.as_deref())?;
    let target = (url, pin(state, create.pin)?);
    let created = state
        .identity
        .join_token_create(admin, create, target, origin);
    created.await
}

/// Lists all tokens.
pub(super) async fn list(state: &AppState, admin: &Caller) -> Result<JoinTokenList, ApiError> {
    let mut list = state.identity.join_token_list(admin).await?;
    if state.encryption.control.is_some() {
        list.tokens.iter_mut().for_each(mark_plain);
    }
    Ok(list)
}

/// Marks a token whose URL leads nowhere since the control plane is encrypted.
fn mark_plain(token: &mut JoinTokenView) {
    let is_plain = token.url.as_deref().is_some_and(|url| !is_encrypted(url));
    if is_plain && token.status == JoinTokenStatus::Valid {
        token.status = JoinTokenStatus::PlainUrl;
    }
}

/// Removes a token.
pub(super) async fn remove(
    state: &AppState,
    admin: &Caller,
    id: JoinTokenId,
    origin: &RequestOrigin,
) -> Result<(), ApiError> {
    state.identity.join_token_remove(admin, id, origin).await
}

/// Pin for a token. By default it is that of an own certificate, whose key stays: the key of the operator's certificate may
/// change when that is renewed, and its nodes know the authority.
fn pin(state: &AppState, wanted: Option<bool>) -> Result<Option<Pin>, Problem> {
    let Some(tls) = &state.encryption.control else {
        if wanted == Some(true) {
            let detail = "must not be true: the control plane is not encrypted, so it has no pin; leave it out, or start \
                          the orchestrator without --tls off";
            return Err(Problem::field("/pin", detail));
        }
        return Ok(None);
    };
    let is_pinned = wanted.unwrap_or(!tls.has_files());
    Ok(is_pinned.then(|| tls.pin()))
}

/// URL at which new nodes reach the control plane: the wanted one, or else that of the banner.
fn join_url(state: &AppState, wanted: Option<&str>) -> Result<String, Problem> {
    let is_tls = state.encryption.control.is_some();
    if let Some(url) = wanted {
        if is_tls && !is_encrypted(url) {
            let detail = "must begin with https://: the control plane is encrypted";
            return Err(Problem::field("/url", detail));
        }
        return Ok(url.trim_end_matches('/').to_owned());
    }
    let (public, control) = (&state.settings.public_url, state.settings.control_listen);
    match JoinUrl::detect(public.as_deref(), control, scheme(is_tls)) {
        JoinUrl::Reachable(url) => Ok(url),
        JoinUrl::Loopback(url) => Err(unknown_url(&format!(
            "the control plane listens on loopback only ({url})"
        ))),
        JoinUrl::Unknown => Err(unknown_url("this machine has no default route")),
    }
}

fn unknown_url(why: &str) -> Problem {
    let detail = format!(
        "is needed, because {why}: name the URL of the control plane at which the new nodes reach it (--url), or start \
         the orchestrator with --public-url"
    );
    Problem::field("/url", detail)
}
