//! Golden files: expected output that stands in a file of its own, for texts that people read.

use std::{env, fs, path::PathBuf};

/// Fails unless `actual` is the content of the file `tests/it/golden/NAME`. With `UPDATE_GOLDEN=1` it rewrites the
/// file instead; review the difference like code. Spaces at the end of a line do not count.
#[track_caller]
pub(crate) fn assert_golden(name: &str, actual: &str) {
    let path = directory().join(name);
    let actual: String = actual
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        actual == expected,
        "{name} differs; rewrite it with UPDATE_GOLDEN=1 where that is right\n{}",
        difference(&expected, &actual)
    );
}

/// The names of the golden files below `name`, sorted.
pub(crate) fn golden_files(name: &str) -> Vec<String> {
    let entries = fs::read_dir(directory().join(name)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn directory() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/it/golden"]
        .iter()
        .collect()
}

/// Lines that are only in one of the texts.
fn difference(expected: &str, actual: &str) -> String {
    let only = |sign, of: &str, other: &str| {
        let lines = of
            .lines()
            .filter(|line| other.lines().all(|known| known != *line));
        lines
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    only('-', expected, actual) + &only('+', actual, expected)
}
