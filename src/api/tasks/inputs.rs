//! Files and stdin of a new task: checks, and where the bytes come from.

use super::create::{CreateTask, prompt};
use crate::api::{
    ArtifactId, UUID_PATTERN,
    jobs::files::{FileMode, MAX_FILES, MAX_PATH_BYTES, check_path},
    problem::Problem,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Most bytes of all files in a request together, and most bytes of stdin.
pub const MAX_INLINE_BYTES: usize = 10 * 1024 * 1024;

/// File of a new task: exactly one of `content`, `content_base64` and `artifact_id`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = exclusive_source_schema()))]
pub struct FileInput {
    /// Path in `/workspace`; with `extract`, the directory that the archive is extracted to.
    #[schemars(length(min = 1, max = MAX_PATH_BYTES))]
    pub path: String,
    /// Content as text. Contents in the request have at most 10 MiB in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Content as base64 of its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub content_base64: Option<String>,
    /// Artifact whose content it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = UUID_PATTERN))]
    pub artifact_id: Option<ArtifactId>,
    /// Permission bits; `0644` by default. An archive has those of its entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
    /// Whether the content is an archive to extract: tar, tar.gz or tar.zst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extract: Option<bool>,
}

/// Schema of the rule over the sources of a file.
fn exclusive_source_schema() -> Value {
    let sources = ["content", "content_base64", "artifact_id"];
    let schemas = sources.map(|source| {
        let only = |name| json!({"type": if name == source { "string" } else { "null" }});
        let properties: serde_json::Map<String, Value> = sources
            .iter()
            .map(|name| ((*name).to_owned(), only(*name)))
            .collect();
        json!({"required": [source], "properties": properties})
    });
    json!(schemas)
}

/// Where the bytes of a file come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InputSource {
    /// The request.
    Inline(Vec<u8>),
    /// An artifact that the user may see.
    Artifact(ArtifactId),
}

/// Checked file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedFile {
    /// JSON pointer of the field that names the source.
    pub pointer: String,
    /// Path in the workspace; the name of the artifact where it is `None`.
    pub path: Option<String>,
    /// Source.
    pub source: InputSource,
    /// Permission bits.
    pub mode: Option<FileMode>,
    /// Whether to extract it.
    pub extract: bool,
}

/// Checked files and stdin of a new task, with their bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TaskInputs {
    /// Files, in the order of the request.
    pub files: Vec<CheckedFile>,
    /// Content of stdin.
    pub stdin: Option<Vec<u8>>,
}

impl TaskInputs {
    /// Whether the task has neither files nor stdin.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.stdin.is_none()
    }
}

impl CreateTask {
    /// Takes the files and stdin out of the request, and checks them.
    pub fn take_inputs(&mut self) -> Result<TaskInputs, Problem> {
        let files = self.files.take().unwrap_or_default();
        let attachments = self.attachments.take().unwrap_or_default();
        if files.len() + attachments.len() > MAX_FILES {
            let detail = format!(
                "must have at most {MAX_FILES} files, attachments included; send more as an archive, with extract"
            );
            return Err(Problem::field("/files", detail));
        }
        let mut left = MAX_INLINE_BYTES;
        let mut checked = Vec::new();
        for (n, file) in files.into_iter().enumerate() {
            checked.push(check_file(&format!("/files/{n}"), file, &mut left)?);
        }
        let attachments = attachments.into_iter().enumerate();
        checked.extend(attachments.map(|(n, id)| CheckedFile {
            pointer: format!("/attachments/{n}"),
            path: None,
            source: InputSource::Artifact(id),
            mode: None,
            extract: false,
        }));
        let stdin = match (self.stdin.take(), self.stdin_base64.take()) {
            (Some(_), Some(_)) => {
                let detail = "must be left out where there is stdin_base64";
                return Err(Problem::field("/stdin", detail));
            }
            (Some(text), None) => Some(("/stdin", text.into_bytes())),
            (None, Some(text)) => Some(("/stdin_base64", decode("/stdin_base64", &text)?)),
            (None, None) => None,
        };
        if let Some((pointer, bytes)) = &stdin
            && bytes.len() > MAX_INLINE_BYTES
        {
            let detail = format!(
                "must have at most 10 MiB, got {} bytes; send a file instead",
                bytes.len()
            );
            return Err(Problem::field(pointer, detail));
        }
        if self.interactive && stdin.is_some() {
            let detail = "must be left out where there is stdin: it ends with that content";
            return Err(Problem::field("/interactive", detail));
        }
        if self.is_for_model() && (!checked.is_empty() || stdin.is_some()) {
            let pointer = stdin.map_or("/files", |(pointer, _)| pointer);
            return Err(prompt::unused(pointer));
        }
        Ok(TaskInputs {
            files: checked,
            stdin: stdin.map(|(_, bytes)| bytes),
        })
    }
}

fn check_file(pointer: &str, file: FileInput, left: &mut usize) -> Result<CheckedFile, Problem> {
    let extract = file.extract.unwrap_or(false);
    check_path(&format!("{pointer}/path"), &file.path, extract)?;
    let at = |field| format!("{pointer}/{field}");
    let (pointer, source) = match (file.content, file.content_base64, file.artifact_id) {
        (Some(text), None, None) => (at("content"), InputSource::Inline(text.into_bytes())),
        (None, Some(text), None) => {
            let bytes = decode(&at("content_base64"), &text)?;
            (at("content_base64"), InputSource::Inline(bytes))
        }
        (None, None, Some(id)) => (at("artifact_id"), InputSource::Artifact(id)),
        _ => {
            let detail = "must have exactly one of content, content_base64 and artifact_id";
            return Err(Problem::field(pointer, detail));
        }
    };
    if let InputSource::Inline(bytes) = &source {
        *left = left.checked_sub(bytes.len()).ok_or_else(|| {
            let detail = "is too large: files in a request have at most 10 MiB in all; upload it (POST /v1/artifacts) and give its artifact_id";
            Problem::field(&pointer, detail)
        })?;
    }
    Ok(CheckedFile {
        pointer,
        path: Some(file.path),
        source,
        mode: file.mode,
        extract,
    })
}

fn decode(pointer: &str, text: &str) -> Result<Vec<u8>, Problem> {
    let decoded = BASE64_STANDARD.decode(text);
    decoded
        .map_err(|_| Problem::field(pointer, "must be base64 with padding (RFC 4648, section 4)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(json: Value) -> Result<TaskInputs, String> {
        let mut task: CreateTask = serde_json::from_value(json).unwrap();
        let inputs = task.take_inputs();
        inputs.map_err(|problem| problem.errors[0].pointer.clone())
    }

    #[test]
    fn sources_are_exclusive() {
        let id = ArtifactId::new();
        let both = inputs(json!({"files": [{"path": "a", "content": "", "artifact_id": id}]}));
        assert_eq!(both.unwrap_err(), "#/files/0");
        let none = inputs(json!({"files": [{"path": "a"}]}));
        assert_eq!(none.unwrap_err(), "#/files/0");
        let stdin = inputs(json!({"stdin": "", "stdin_base64": ""}));
        assert_eq!(stdin.unwrap_err(), "#/stdin");
        let live = inputs(json!({"stdin": "", "interactive": true}));
        assert_eq!(live.unwrap_err(), "#/interactive");
        let base64 = inputs(json!({"files": [{"path": "a", "content_base64": "x"}]}));
        assert_eq!(base64.unwrap_err(), "#/files/0/content_base64");
        let path = inputs(json!({"files": [{"path": "../a", "content": "x"}]}));
        assert_eq!(path.unwrap_err(), "#/files/0/path");
    }

    #[test]
    fn bytes_are_taken_out() {
        let id = ArtifactId::new();
        let taken = inputs(json!({
            "files": [{"path": "a", "content": "é"}, {"path": ".", "artifact_id": id, "extract": true}],
            "attachments": [id],
            "stdin_base64": "/w==",
        }));
        let taken = taken.unwrap();
        let sources: Vec<_> = taken.files.iter().map(|file| &file.source).collect();
        let artifact = InputSource::Artifact(id);
        let inline = InputSource::Inline("é".as_bytes().to_vec());
        assert_eq!(sources, [&inline, &artifact, &artifact]);
        assert_eq!(taken.files[2].path, None);
        assert_eq!(taken.stdin.as_deref(), Some(&[255][..]));
    }

    #[test]
    fn inline_bytes_are_limited_in_all() {
        let half = "x".repeat(MAX_INLINE_BYTES / 2);
        let file = |content: &str| json!({"path": "a", "content": content});
        let fits = inputs(json!({"files": [file(&half), file(&half)]}));
        assert!(fits.is_ok());
        let more = inputs(json!({"files": [file(&half), file(&half), file("x")]}));
        assert_eq!(more.unwrap_err(), "#/files/2/content");
        let stdin = format!("{half}{half}x");
        assert_eq!(inputs(json!({"stdin": stdin})).unwrap_err(), "#/stdin");
    }
}
