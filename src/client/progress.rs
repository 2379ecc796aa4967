//! Progress of a transfer: a bar where stderr is a terminal, else nothing.

use super::print::{clean, note};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal as _};

/// Size below which a transfer has no bar.
const MIN_BAR_BYTES: u64 = 1 << 20;

/// Progress of one transfer. The bar disappears when it is dropped.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Progress of `verb`, such as `upload`, of a content.
    pub(super) fn start(verb: &str, name: &str, size: u64) -> Self {
        let is_shown = io::stderr().is_terminal() && size >= MIN_BAR_BYTES;
        let target = if is_shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = ProgressBar::with_draw_target(Some(size), target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(format!("{verb} {}", clean(name)));
        Self { bar }
    }

    pub(super) fn position(&self) -> u64 {
        self.bar.position()
    }

    pub(super) fn set(&mut self, position: u64) {
        self.bar.set_position(position);
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Prints a remark above the bar.
    pub(super) fn note(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
