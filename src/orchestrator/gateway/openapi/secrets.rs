//! Operations of secrets.

use super::{
    operation::{Operation, operation},
    schemas::schema_of,
};
use crate::api::secrets::{RotatedKey, SecretList, SecretOwner, SecretView};
use http::Method;

const FOR: &str =
    "Users whose jobs can name the secret; only an admin may say everyone. The caller if absent.";

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            Method::GET,
            "/v1/secrets",
            "list_secrets",
            "List the names of the secrets that your jobs can use; no call returns a value",
        )
        .returns::<SecretList>(),
        operation(
            Method::PUT,
            "/v1/secrets/{name}",
            "set_secret",
            "Set the value of a secret: the body, 1 byte to 64 KiB of text without NUL",
        )
        .query("for", FOR, schema_of::<SecretOwner>)
        .octets()
        .returns::<SecretView>()
        .fails_with(409)
        .fails_with(413),
        operation(
            Method::DELETE,
            "/v1/secrets/{name}",
            "remove_secret",
            "Remove a secret; queued tasks that name it end with an error",
        )
        .query("for", FOR, schema_of::<SecretOwner>),
        operation(
            Method::POST,
            "/v1/secrets:rotate-key",
            "rotate_secret_key",
            "Encrypt all secrets with a new key",
        )
        .admin_only()
        .returns::<RotatedKey>(),
    ]
}
