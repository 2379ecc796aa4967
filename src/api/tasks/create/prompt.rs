//! Prompts for a model: tasks without a sandbox.

use super::{CreateTask, InputMode};
use crate::api::{jobs::Prompt, problem::Problem};
use serde_json::{Value, json};

/// Fields of a sandbox, which a prompt for a model has not.
const SANDBOX_FIELDS: [&str; 13] = [
    "image",
    "env",
    "artifacts",
    "artifact_limit",
    "cpus",
    "memory",
    "pids",
    "shm_size",
    "gpus",
    "pull",
    "secrets",
    "mask",
    "egress",
];

impl CreateTask {
    /// Whether a model answers the prompt.
    pub fn is_for_model(&self) -> bool {
        let is_prompt = matches!(self.input_mode, None | Some(InputMode::Prompt));
        self.prompt.is_some() && is_prompt && self.command.is_none() && self.script.is_none()
    }

    /// Prompt for a model, where the task is one.
    pub(super) fn take_prompt(&mut self) -> Result<Option<Prompt>, Problem> {
        if !self.is_for_model() {
            let is_named = self.model.is_some();
            return match is_named {
                true => Err(Problem::field(
                    "/model",
                    "must be left out where no model answers a prompt",
                )),
                false => Ok(None),
            };
        }
        let is_given = [
            self.image.is_some(),
            self.env.is_some(),
            self.artifacts.is_some(),
            self.artifact_limit.is_some(),
            self.cpus.is_some(),
            self.memory.is_some(),
            self.pids.is_some(),
            self.shm_size.is_some(),
            self.gpus.is_some(),
            self.pull.is_some(),
            self.secrets.is_some(),
            self.mask.is_some(),
            self.egress.is_some(),
        ];
        let mut fields = SANDBOX_FIELDS.iter().zip(is_given);
        if let Some((field, _)) = fields.find(|(_, is_given)| *is_given) {
            return Err(unused(&format!("/{field}")));
        }
        if self.interactive {
            return Err(unused("/interactive"));
        }
        if self.use_inference == Some(true) {
            return Err(unused("/use_inference"));
        }
        let text = self.prompt.take().unwrap_or_default();
        let model = self.model.take();
        let prompt = Prompt { text, model };
        prompt.check("/prompt", "/model")?;
        Ok(Some(prompt))
    }
}

/// Problem of a field that only a sandbox has.
pub(in crate::api::tasks) fn unused(pointer: &str) -> Problem {
    let detail = "must be left out for a prompt that a model answers: it has no sandbox; to run text as a shell script, \
                  send it as script, or as prompt with input_mode \"script\"";
    Problem::field(pointer, detail)
}

/// Schema of the rule over several fields: exactly one of command, script and prompt, and for a prompt that a model
/// answers nothing of a sandbox.
pub(super) fn exclusive_input_schema() -> Value {
    let ways = [
        ("command", "array"),
        ("script", "string"),
        ("prompt", "string"),
    ];
    let mut schemas: Vec<Value> = Vec::new();
    for (way, kind) in ways {
        let (required, modes) = match way {
            "prompt" => (json!([way, "input_mode"]), json!(["script", "commands"])),
            _ => (json!([way]), json!(["script", "commands", null])),
        };
        let mut properties = inputs(way, kind, &modes);
        properties["model"] = json!({"type": "null"});
        schemas.push(json!({"required": required, "properties": properties}));
    }
    let mut properties = inputs("prompt", "string", &json!(["prompt", null]));
    for field in SANDBOX_FIELDS.into_iter().chain(["stdin", "stdin_base64"]) {
        properties[field] = json!({"type": "null"});
    }
    for field in ["files", "attachments"] {
        properties[field] = json!({"maxItems": 0});
    }
    properties["interactive"] = json!({"enum": [false]});
    properties["use_inference"] = json!({"enum": [false, null]});
    schemas.push(json!({"required": ["prompt"], "properties": properties}));
    json!({"oneOf": schemas})
}

/// Schemas of the fields that say what is run.
fn inputs(way: &str, kind: &str, modes: &Value) -> Value {
    let only = |name| json!({"type": if name == way { kind } else { "null" }});
    json!({
        "command": only("command"),
        "script": only("script"),
        "prompt": only("prompt"),
        "input_mode": {"enum": modes},
    })
}
