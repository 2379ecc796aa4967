//! What the binary is besides what `--help` shows: helpers that cynode starts itself.

use crate::{
    engine::{
        CHECK_IMAGE_ARGUMENT, MEASURE_SANDBOX_ARGUMENT, REMOVE_TREE_ARGUMENT, devices, files_fault,
        measure_from_argument, remove_tree,
    },
    sandbox::shim,
    worker::job_shim,
};
use std::io::Write as _;

/// Becomes one of the helpers when the first argument says so, and then never returns.
pub fn run_if_requested() {
    let mut arguments = std::env::args_os().skip(1);
    let Some(first) = arguments.next() else {
        return;
    };
    #[cfg(target_os = "linux")]
    if first == crate::sandbox_init::ARGUMENT {
        crate::sandbox_init::main();
    }
    if first == shim::ARGUMENT {
        job_shim::main();
    }
    if first == devices::LIST_DEVICES_ARGUMENT {
        // For the one who started us, as the lines below.
        let _ = std::io::stdout().write_all(devices::list_gpu_devices().as_bytes());
        std::process::exit(0);
    }
    if first == CHECK_IMAGE_ARGUMENT {
        let root = arguments.next().unwrap_or_default();
        let (said, code) = match files_fault(root.as_ref()) {
            Ok(fault) => (
                write!(std::io::stdout(), "{}", fault.unwrap_or_default()),
                0,
            ),
            Err(error) => (
                writeln!(std::io::stderr(), "{}: {error}", root.display()),
                1,
            ),
        };
        std::process::exit(if said.is_ok() { code } else { 1 });
    }
    if first == MEASURE_SANDBOX_ARGUMENT {
        let order = arguments.next().unwrap_or_default();
        let Ok(answer) = measure_from_argument(&order.to_string_lossy()) else {
            let _ = writeln!(std::io::stderr(), "not an order to measure a sandbox");
            std::process::exit(1);
        };
        let _ = std::io::stdout().write_all(answer.as_bytes());
        std::process::exit(0);
    }
    if first == REMOVE_TREE_ARGUMENT {
        let tree = arguments.next().unwrap_or_default();
        if let Err(error) = remove_tree(tree.as_ref()) {
            // For the one who started us and reads what we say.
            let _ = writeln!(std::io::stderr(), "{}: {error}", tree.display());
            std::process::exit(1);
        }
        std::process::exit(0);
    }
}
