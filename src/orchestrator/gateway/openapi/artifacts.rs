//! Operations of artifacts.

use super::{
    super::{MAX_PAGE_SIZE, artifacts::KEY_PATTERN, tasks::DEFAULT_PAGE_SIZE},
    operation::{Operation, operation},
    schemas::{any_text, octets},
};
use crate::api::{
    artifacts::{Artifact, ArtifactList, MAX_NAME_BYTES},
    jobs::files::ContentHash,
};
use http::Method;
use schemars::{JsonSchema as _, Schema, SchemaGenerator, json_schema};

fn cursor(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "anyOf": [{"format": "uuid"}, {"maxLength": 0}]})
}

fn page_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE,
    })
}

fn list(operation: Operation) -> Operation {
    operation
        .query("limit", "Maximum number of entries.", page_size)
        .query("cursor", "The next_cursor of the previous page.", cursor)
        .returns::<ArtifactList>()
}

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    let of_task = operation(
        Method::GET,
        "/v1/tasks/{id}/artifacts",
        "list_task_artifacts",
        "List the files that a task left, up to 1000 where limit is absent",
    );
    let own = operation(
        Method::GET,
        "/v1/artifacts",
        "list_artifacts",
        "List your artifacts, newest first; admins get those of all users",
    );
    vec![
        list(of_task),
        upload(),
        list(own.query("name", "Only artifacts of exactly this name.", any_text)),
        operation(
            Method::GET,
            "/v1/artifacts/{id}",
            "get_artifact",
            "Download an artifact; show its name, size and hash where Accept names application/json",
        )
        .header("Range", "Range of bytes, answered with 206.", any_text)
        .returns_media("application/octet-stream", "Bytes of the artifact.", octets)
        .returns::<Artifact>()
        .also(206, "Range of the bytes")
        .fails_with(416),
        operation(
            Method::DELETE,
            "/v1/artifacts/{id}",
            "delete_artifact",
            "Delete an artifact; tasks that need its content keep that until they have ended",
        ),
    ]
}

fn upload() -> Operation {
    operation(
        Method::POST,
        "/v1/artifacts",
        "upload_artifact",
        "Upload an artifact of any size, in one go or in parts with Content-Range",
    )
    .query("name", "Name of the artifact.", |_| {
        json_schema!({"type": "string", "minLength": 1, "maxLength": MAX_NAME_BYTES, "default": "artifact"})
    })
    .query(
        "sha256",
        "SHA-256 of the whole, which is checked and identifies the upload.",
        ContentHash::json_schema,
    )
    .query(
        "key",
        "Name of your own that identifies the upload where its hash is not known yet.",
        |_| json_schema!({"type": "string", "pattern": KEY_PATTERN}),
    )
    .header(
        "Content-Range",
        "Part that the body is, such as `bytes 0-99/1000`; `bytes */1000` with an empty body asks how much has arrived.",
        any_text,
    )
    .octets()
    .creates_at_location::<Artifact>()
    .also(308, "Part stored, or question answered: `Range` says which bytes are here")
    .fails_with(409)
    .fails_with(416)
    .fails_with(507)
}
