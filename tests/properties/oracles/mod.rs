//! Invariants for any input of a stranger, whether it is accepted or not.
//!
//! Each function gives its input to the parser for it, and panics if an invariant is broken. The forms are
//! written again here, from the contract and by other means than in the parsers. The property tests call
//! these functions with nearly valid inputs, the fuzz targets (`fuzz/`) with any bytes.

pub mod bodies;
pub mod events;
pub mod image;
pub mod names;
pub mod queries;
pub mod wire;

use cynode::api::problem::Problem;

/// A refusal names a field, by a pointer into the body, and is of a size that can be sent.
pub fn refused(problem: &Problem) {
    let [error] = problem.errors.as_slice() else {
        panic!("the problem names no field: {problem:?}");
    };
    let pointer = error.pointer.strip_prefix('#').expect("a fragment");
    assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer}");
    bounded(problem);
}

/// A refusal is the caller's fault, and of a size that can be sent.
pub fn bounded(problem: &Problem) {
    assert_eq!(problem.kind.status(), 400, "{problem:?}");
    assert!(!problem.detail.is_empty());
    let size = problem.body("").detail.len();
    assert!(size < 8 * 1024, "{size} bytes of detail");
}

/// Whether `text` is one character of `first`, then at most `more` of `others`.
pub fn shaped(text: &str, first: fn(char) -> bool, others: fn(char) -> bool, more: usize) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(first) && chars.clone().count() <= more && chars.all(others)
}
