//! Warnings of answers, on stderr.

use super::{
    flags::field_in_flags,
    print::{clean, note},
};
use crate::api::warning::Warning;
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// Warnings that this command has shown: the answers to it may repeat one.
static SHOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Shows warnings, each once.
pub(super) fn show(warnings: Vec<Warning>) {
    for Warning { field, detail } in warnings {
        let field = field_in_flags(&field);
        let text = clean(&format!("warning: {field}: {detail}"));
        if SHOWN.lock().insert(text.clone()) {
            note(&text);
        }
    }
}
