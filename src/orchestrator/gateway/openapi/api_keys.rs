//! Operations of API keys, and of the use of models.

use super::{
    super::{MAX_PAGE_SIZE, api_keys, usage},
    operation::{Operation, operation},
    schemas::any_text,
};
use crate::api::{
    api_keys::{ApiKeyList, CreateApiKey, CreatedApiKey},
    usage::{Usage, UsageField},
};
use http::Method;
use schemars::json_schema;

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    vec![
        operation(
            Method::POST,
            "/v1/keys",
            "create_api_key",
            "Create an API key of yours; the answer shows the key for the only time",
        )
        .body::<CreateApiKey>()
        .creates::<CreatedApiKey>()
        .fails_with(409),
        operation(
            Method::GET,
            "/v1/keys",
            "list_api_keys",
            "List your API keys, newest first; admins get those of all users",
        )
        .query("limit", "Maximum number of entries.", |_| {
            json_schema!({
                "type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": api_keys::DEFAULT_PAGE_SIZE,
            })
        })
        .query(
            "cursor",
            "The next_cursor of the previous page.",
            |_| json_schema!({"type": "string", "anyOf": [{"format": "uuid"}, {"maxLength": 0}]}),
        )
        .returns::<ApiKeyList>(),
        operation(
            Method::DELETE,
            "/v1/keys/{id}",
            "revoke_api_key",
            "Revoke an API key immediately, streams under way included",
        ),
        usage(),
    ]
}

fn usage() -> Operation {
    operation(
        Method::GET,
        "/v1/usage",
        "get_usage",
        "Show your use of models, summed up; admins get that of all users",
    )
    .query(
        "since",
        "First day, in UTC; by default the 30th before the last one, itself included.",
        |_| json_schema!({"type": "string", "format": "date"}),
    )
    .query(
        "until",
        "Last day, in UTC; today if absent.",
        |_| json_schema!({"type": "string", "format": "date"}),
    )
    .query(
        "by",
        "Fields by which to sum up, separated by commas: day, user, key, task, model.",
        |_| {
            let names: Vec<_> = UsageField::ALL.iter().map(|field| field.as_str()).collect();
            let name = format!("({})", names.join("|"));
            json_schema!({"type": "string", "pattern": format!("^{name}(,{name})*$"), "default": "user,key,model"})
        },
    )
    .query("user", "Only use by the user of this handle.", any_text)
    .query("limit", "Maximum number of entries.", |_| {
        json_schema!({
            "type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": usage::DEFAULT_PAGE_SIZE,
        })
    })
    .query(
        "cursor",
        "The next_cursor of the previous page.",
        |_| json_schema!({"type": "string", "pattern": "^[0-9]{0,5}$"}),
    )
    .returns::<Usage>()
}
