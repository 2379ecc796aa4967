//! Operations of join tokens.

use super::operation::{Operation, operation};
use crate::api::nodes::{CreateJoinToken, CreatedJoinToken, JoinTokenList};
use http::Method;

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            Method::POST,
            "/v1/join-tokens",
            "create_join_token",
            "Create a token by which new nodes join; the answer shows it for the only time",
        )
        .admin_only()
        .optional_body::<CreateJoinToken>()
        .creates::<CreatedJoinToken>()
        .fails_with(409),
        operation(
            Method::GET,
            "/v1/join-tokens",
            "list_join_tokens",
            "List join tokens, newest first, with the nodes that joined by them",
        )
        .admin_only()
        .returns::<JoinTokenList>(),
        operation(
            Method::DELETE,
            "/v1/join-tokens/{id}",
            "remove_join_token",
            "Remove a join token; its nodes stay, but can't register again by it",
        )
        .admin_only(),
    ]
}
