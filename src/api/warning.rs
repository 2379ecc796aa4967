//! Warnings about parts of a request that were ignored or changed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Part of a request that was ignored or changed. The call itself succeeded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// Field of the body, or query parameter, such as `timeout_seconds` or `env.PATH`.
    pub field: String,
    /// Description of what happened to it.
    pub detail: String,
}

/// Warnings of any answer; the field is absent where there are none.
#[derive(Default, Deserialize)]
pub struct WithWarnings {
    /// Warnings, at most 17.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}
