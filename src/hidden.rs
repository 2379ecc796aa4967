//! What the binary is besides what `--help` shows: helpers that cynode starts itself.

use crate::worker::{REMOVE_ARGUMENT, remove_tree};

/// Becomes one of the helpers when the first argument says so, and then never returns.
pub fn divert() {
    let mut arguments = std::env::args_os().skip(1);
    let Some(first) = arguments.next() else {
        return;
    };
    #[cfg(target_os = "linux")]
    if first == crate::sandbox_init::ARGUMENT {
        crate::sandbox_init::main();
    }
    if first == REMOVE_ARGUMENT {
        let removed = arguments.next().map(|tree| remove_tree(tree.as_ref()));
        std::process::exit(if matches!(removed, Some(Ok(()))) {
            0
        } else {
            1
        });
    }
}
