//! Opening handshake of a WebSocket (RFC 6455, section 4.2), on the server's side.

use crate::{
    api::problem::{Problem, ProblemKind},
    http::request::Request,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::header;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Bytes of a key, before base64.
const KEY_BYTES: usize = 16;

/// Value of `Sec-WebSocket-Accept` for a request. Fails with 400 where it does not open a WebSocket.
pub(super) fn accept_key(request: &Request) -> Result<String, Problem> {
    let header = |name: header::HeaderName| request.header(name.as_str());
    let names = |name, token: &str| {
        header(name).is_some_and(|value| {
            let mut tokens = value.split(',');
            tokens.any(|one| one.trim().eq_ignore_ascii_case(token))
        })
    };
    if !names(header::UPGRADE, "websocket") || !names(header::CONNECTION, "upgrade") {
        return Err(refused(
            "this call opens a terminal over a WebSocket; call it with a WebSocket client, or with cynode sandbox shell",
        ));
    }
    if header(header::SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(refused(
            "header Sec-WebSocket-Version: must be 13; use a client that speaks RFC 6455",
        )
        .with_header("sec-websocket-version", "13".to_owned()));
    }
    let key = header(header::SEC_WEBSOCKET_KEY).map(str::trim);
    let is_key = |key: &&str| STANDARD.decode(key).is_ok_and(|key| key.len() == KEY_BYTES);
    match key.filter(is_key) {
        Some(key) => Ok(derive_accept_key(key.as_bytes())),
        None => Err(refused(
            "header Sec-WebSocket-Key: must be 16 random bytes in base64",
        )),
    }
}

fn refused(detail: &str) -> Problem {
    Problem::new(ProblemKind::InvalidRequest, detail)
}
