//! Nodes and the Node API (contract, section 3), one file per step of the conversation.
//!
//! All input from nodes is hostile until checked: [`CapabilityReport::check`] bounds every text and every list, so
//! that a stored report stays below two megabytes.

mod capability;
mod config;
mod connect;
pub mod features;
mod gpu_share;
mod inference;
mod inference_mode;
mod join_token;
mod join_tokens;
mod pre_shared_keys;
mod reach;
mod registration;
mod report;
mod report_validation;
mod validation;
mod view;

pub use capability::*;
pub use config::*;
pub use connect::Connect;
pub use gpu_share::GpuShare;
pub use inference::{
    DEFAULT_MODEL_SERVER_IMAGE, INFERENCE_PROXY, Inference, MAX_MODEL_NAME_BYTES, MAX_MODELS,
    ModelDetails,
};
pub use inference_mode::InferenceMode;
pub use join_token::{JOIN_PREFIX, JoinToken, JoinTokenError};
pub use join_tokens::*;
pub use pre_shared_keys::{MAX_PSKS, PreSharedKeys, first_psk};
pub use reach::Reach;
pub use registration::*;
pub use report::effective_timeout_seconds;
pub use validation::{
    LABEL_PATTERN, MAX_LABELS, MAX_TEXT_BYTES, MIN_PSK_CHARS, SLUG_PATTERN, check_label,
    check_model, check_plain_url, check_psk, check_slug, check_url, check_worker_url,
    slug_from_host_name,
};
pub use view::*;
