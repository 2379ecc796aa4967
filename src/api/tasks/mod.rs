//! Users and their tasks (contract, section 2): what they ask for, and what they see.

mod create;
mod log_cursor;
mod name;
mod view;

pub use create::*;
pub use log_cursor::*;
pub use name::{MAX_NAME_CHARS, normalize_name, numbered_name};
pub use view::*;
