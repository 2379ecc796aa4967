//! Helper processes: the binary started by itself, with a first argument that `--help` does not show.

use crate::{
    client::sandbox::terminal_guard,
    engine::{
        CHECK_IMAGE_ARGUMENT, COPY_TREE_ARGUMENT, MEASURE_SANDBOX_ARGUMENT, REMOVE_TREE_ARGUMENT,
        copy_from_argument, devices, files_fault, limits, measure_from_argument, remove_tree,
    },
    sandbox::shim,
    worker::{artifacts, job_shim},
};
use std::{
    env,
    io::{Write as _, stderr, stdout},
    path::Path,
    process,
};

/// Runs the helper that the first argument requests, if any, and then never returns. The process that started it
/// reads its output.
pub fn run_if_requested() {
    let mut arguments = env::args_os().skip(1);
    let Some(helper) = arguments.next() else {
        return;
    };
    let argument = arguments.next().unwrap_or_default();
    let path = Path::new(&argument);
    let at_path = |error| format!("{}: {error}", path.display());
    let output: Result<String, String> = match helper.to_str() {
        #[cfg(target_os = "linux")]
        Some(crate::sandbox_init::ARGUMENT) => crate::sandbox_init::main(),
        #[cfg(target_os = "linux")]
        Some(crate::sandbox_files::ARGUMENT) => crate::sandbox_files::main()
            .map(|()| String::new())
            .map_err(|error| error.to_string()),
        Some(shim::ARGUMENT) => job_shim::main(),
        Some(devices::LIST_DEVICES_ARGUMENT) => Ok(devices::list_gpu_devices()),
        Some(limits::LIST_LIMITS_ARGUMENT) => Ok(limits::list_limits()),
        Some(CHECK_IMAGE_ARGUMENT) => files_fault(path)
            .map(|fault| fault.unwrap_or_default())
            .map_err(at_path),
        Some(MEASURE_SANDBOX_ARGUMENT) => measure_from_argument(&argument.to_string_lossy())
            .map_err(|_| "invalid request to measure a sandbox".to_owned()),
        Some(COPY_TREE_ARGUMENT) => copy_from_argument(&argument.to_string_lossy())
            .map_err(|_| "invalid request to copy a tree".to_owned()),
        Some(artifacts::COLLECT_ARGUMENT) => {
            artifacts::collect_from_argument(path).map_err(at_path)
        }
        Some(terminal_guard::ARGUMENT) => terminal_guard::main(),
        Some(REMOVE_TREE_ARGUMENT) => remove_tree(path).map(|()| String::new()).map_err(at_path),
        _ => return,
    };
    let written = match &output {
        Ok(text) => stdout().write_all(text.as_bytes()),
        Err(text) => writeln!(stderr(), "{text}"),
    };
    process::exit(i32::from(output.is_err() || written.is_err()));
}
