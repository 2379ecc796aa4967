//! Parts of a request that did not count, or counted as something else.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A part of a request that was ignored or changed. The call itself went well.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// The field of the body or the query parameter, such as `timeout_seconds` or `env.PATH`.
    pub field: String,
    /// What was done with it.
    pub detail: String,
}

/// The part of any answer that holds its warnings; there is none where nothing is to be said.
#[derive(Default, Deserialize)]
pub struct WithWarnings {
    /// What was ignored or changed.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}
