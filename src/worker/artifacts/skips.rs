//! Files that are not collected, and what the result says of them.

use super::walk::MAX_DEPTH;
use crate::api::{
    jobs::{
        SkippedArtifacts,
        artifacts::{MAX_ARTIFACT_PATHS_BYTES, MAX_ARTIFACTS},
    },
    size::ByteSize,
};
use std::collections::BTreeMap;

/// Longest part of a name that a reason quotes, in bytes.
const MAX_QUOTED_BYTES: usize = 200;

/// Reason for which a file is not collected.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Skip {
    OverLimit(u64),
    TooMany,
    NotRegular,
    NotUtf8,
    TooDeep,
    TooManyEntries,
    Failed(String),
    InvalidPattern,
}

/// Files that are not collected, by reason: their number and the first one's path.
#[derive(Default)]
pub(super) struct Skips(BTreeMap<Skip, (u64, String)>);

impl Skips {
    pub(super) fn add(&mut self, skip: Skip, path: &[u8]) {
        let (count, _) = self.0.entry(skip).or_insert_with(|| (0, quoted(path)));
        *count += 1;
    }

    pub(super) fn add_invalid_patterns(&mut self, patterns: Vec<String>) {
        for pattern in patterns {
            self.add(Skip::InvalidPattern, pattern.as_bytes());
        }
    }

    /// Summary for the result.
    pub(super) fn summary(&self) -> Option<SkippedArtifacts> {
        let count = self.0.values().map(|(count, _)| count).sum();
        let reasons = self.0.iter().map(|(skip, (count, first))| match skip {
            Skip::OverLimit(limit) => format!(
                "{count} beyond the limit of {} in all (--artifact-limit), such as {first}",
                ByteSize(*limit)
            ),
            Skip::TooMany => format!("{count} beyond the limit of {MAX_ARTIFACTS} files and {MAX_ARTIFACT_PATHS_BYTES} bytes of paths, such as {first}; collect an archive instead"),
            Skip::NotRegular => format!("{count} not regular files (links, devices, sockets), such as {first}"),
            Skip::NotUtf8 => format!("{count} with names that are not UTF-8, such as {first}"),
            Skip::TooDeep => format!("{count} directories deeper than {MAX_DEPTH} levels or with paths that are too long, such as {first}"),
            Skip::TooManyEntries => format!("all that is left of {count} directories, because the workspace has too many entries, such as {first}; collect an archive instead"),
            Skip::Failed(error) => format!("{count} that could not be read or stored ({error}), such as {first}"),
            Skip::InvalidPattern => format!("{count} patterns that can't be read, such as {first}"),
        });
        let reasons: Vec<_> = reasons.collect();
        let irregular = self.0.get(&Skip::NotRegular).map_or(0, |(count, _)| *count);
        (count > 0).then(|| {
            let reason = format!("not collected: {}", reasons.join("; "));
            SkippedArtifacts::new(count, reason).with_irregular(irregular)
        })
    }
}

fn quoted(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(&path[..path.len().min(MAX_QUOTED_BYTES)]);
    format!("\"{}\"", text.escape_debug())
}
