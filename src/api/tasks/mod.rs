//! Tasks of users: creation, names, views, and positions in their logs (contract, section 2).

mod create;
mod details;
mod inputs;
mod log_cursor;
mod name;
mod since;
mod spec;
mod view;

pub use create::*;
pub use details::*;
pub use inputs::*;
pub use log_cursor::*;
pub use name::{MAX_NAME_CHARS, normalize_name, numbered_name};
pub use since::Since;
pub use spec::TaskSpec;
pub use view::*;
