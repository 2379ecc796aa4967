//! Client commands and their failures, as processes.

use super::{cynode, process::Done};
use std::{path::Path, process::Command};

/// A client command without a login.
pub(crate) fn client(home: &Path, gateway: &str, arguments: &[&str]) -> Command {
    let mut command = cynode(home);
    command.args(arguments).env("CYNODE_GATEWAY_URL", gateway);
    command
}

/// Fails unless it ended with this code, an error of the usual shape, and nothing on stdout.
#[track_caller]
pub(crate) fn fails(done: &Done, code: i32, hint: &str) {
    assert_eq!(done.code, code, "{done:?}");
    assert!(done.stderr.starts_with("error: "), "{done:?}");
    assert!(done.stderr.contains(hint), "{hint:?} in {done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
}
