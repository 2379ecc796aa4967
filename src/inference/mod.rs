//! Calls of model servers, as gateway, worker and sandbox pass them on: which there are, what is read of them, and
//! errors in their own shapes.
//!
//! | to find | look at |
//! |---|---|
//! | calls that may reach a model server, and the API that each belongs to | [`endpoint`] |
//! | `model` and `stream` of a request, read while its body passes | [`head`] |
//! | numbers of tokens of an answer, counted while it passes | [`usage`] |
//! | errors of our own, as clients of each API expect them | [`error`] |
//! | chat completions for callers of our own | [`chat`] |
//! | headers that pass, and bodies of both directions | [`relay`] |
//! | calls of our own: version, and models, which are listed, pulled and deleted | [`ollama`] |
//!
//! Nothing here alters a byte, keeps more than a few KiB of a body, or knows of nodes, users and tasks. Bodies are
//! hostile: those of requests come from users and jobs, those of answers from models.

pub mod chat;
pub mod endpoint;
pub mod error;
pub mod head;
mod json;
pub mod ollama;
pub mod relay;
pub mod usage;

pub use endpoint::{Endpoint, Family};

/// Longest body of a request, in bytes.
pub const MAX_REQUEST_BYTES: usize = crate::http::MAX_BODY_BYTES;
/// Longest name of a model, in bytes.
pub const MAX_MODEL_BYTES: usize = 256;
