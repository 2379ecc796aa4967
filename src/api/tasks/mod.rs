//! Users and their tasks (contract, section 2): what they ask for, and what they see.

mod create;
mod name;
mod place;
mod view;

pub use create::*;
pub use name::{MAX_NAME_CHARS, numbered_name, plain_name};
pub use place::*;
pub use view::*;
