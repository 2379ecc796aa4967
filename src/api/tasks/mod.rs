//! Users and their tasks (contract, section 2): what they ask for, and what they see.

mod create;
mod place;
mod view;

pub use create::*;
pub use place::*;
pub use view::*;
