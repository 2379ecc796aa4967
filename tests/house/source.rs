//! Source files of the package, read as text: nothing of the code under test is compiled in.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// A source file.
pub(crate) struct Source {
    /// Path relative to the package, such as `src/api/mod.rs`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// Segments of the module that a file of `src` is: `["api", "image"]` for `src/api/image.rs`, none for the root.
    pub(crate) fn module(&self) -> Vec<String> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let path = path.strip_suffix("/mod").unwrap_or(path);
        let names = path.split('/').map(str::to_owned);
        names
            .filter(|name| name != "lib" && name != "main")
            .collect()
    }
}

/// All Rust files of `src`.
pub(crate) static SRC: LazyLock<Vec<Source>> = LazyLock::new(|| read_all("src"));
/// All Rust files of `tests`.
pub(crate) static TESTS: LazyLock<Vec<Source>> = LazyLock::new(|| read_all("tests"));

fn read_all(directory: &str) -> Vec<Source> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&package.join(directory), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(package).unwrap().to_str().unwrap();
        Source::new(name, &fs::read_to_string(path).unwrap())
    };
    paths.iter().map(read).collect()
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|end| end == "rs") {
            paths.push(path);
        }
    }
}
