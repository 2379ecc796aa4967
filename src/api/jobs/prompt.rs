//! Jobs without a sandbox: a prompt that the model server of a node answers.

use super::check_size;
use crate::api::{nodes::check_model, problem::Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest prompt, in bytes.
pub const MAX_PROMPT_BYTES: usize = super::MAX_SCRIPT_BYTES;

/// Pattern of the name of a model, for schemas; see [`check_model`].
pub const MODEL_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}$";

/// Prompt for a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Text of the user.
    pub text: String,
    /// Model that answers; by default one that the node has loaded, else its first by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl Prompt {
    /// Checks text and model, which the problem names by these pointers.
    pub fn check(&self, text: &str, model: &str) -> Result<(), Problem> {
        if self.text.trim().is_empty() {
            let detail = "must not be empty; give the text that a model answers";
            return Err(Problem::field(text, detail));
        }
        check_size(text, &self.text, MAX_PROMPT_BYTES)?;
        if self.text.contains('\0') {
            return Err(Problem::field(text, "must not contain a NUL character"));
        }
        let name = self.model.as_deref();
        name.map_or(Ok(()), |name| check_model(model, name))
    }
}

/// Use of a model by a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobInference {
    /// Model that was asked.
    pub model: String,
    /// Tokens that the model read.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens that the model wrote.
    #[serde(default)]
    pub completion_tokens: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_names_wrong_field() {
        let prompt = |text: &str, model: Option<&str>| Prompt {
            text: text.to_owned(),
            model: model.map(str::to_owned),
        };
        prompt("why?", Some("qwen3:0.6b"))
            .check("/a", "/b")
            .unwrap();
        let long = "x".repeat(MAX_PROMPT_BYTES + 1);
        for (wrong, pointer) in [
            (prompt(" \n", None), "#/a"),
            (prompt(&long, None), "#/a"),
            (prompt("a\0", None), "#/a"),
            (prompt("x", Some("a b")), "#/b"),
            (prompt("x", Some("")), "#/b"),
        ] {
            let problem = wrong.check("/a", "/b").unwrap_err();
            assert_eq!(problem.errors[0].pointer, pointer);
        }
    }
}
