//! Orphaned containers: those of a podman that was killed while it created them.
//!
//! Podman starts conmon, and conmon has the runtime create the container. A podman that is killed before it has
//! recorded that leaves a container that is missing in its database: `podman rm` removes only what it knows, and
//! conmon waits forever for a start. Such a conmon is found by the container's name, which is among its
//! arguments with the runtime and the id.

use super::{Program, call};
use std::{fs, path::PathBuf, time::Duration};

/// Time limit of all attempts together.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);
const RUNTIME_CALL_TIMEOUT: Duration = Duration::from_mins(1);
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// A container by its runtime, which knows it where podman doesn't.
struct Orphan {
    runtime: PathBuf,
    id: String,
}

/// Has the runtime remove the container of this name, again and again: conmon may just be creating it. Returns
/// whether no conmon is left.
pub(super) async fn remove(name: &str) -> bool {
    let removed = async {
        while let Some(Orphan { runtime, id }) = find(name).await {
            let arguments = ["delete", "--force", &id];
            let runtime = Program::plain(runtime);
            if let Err(error) = call(&runtime, &arguments, RUNTIME_CALL_TIMEOUT, |_| ()).await {
                tracing::debug!(container = name, id, %error, "runtime could not remove a container");
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    };
    let is_gone = tokio::time::timeout(REMOVAL_TIMEOUT, removed).await.is_ok();
    if !is_gone {
        tracing::warn!(
            container = name,
            "conmon of a removed container does not end; see: ps ax | grep conmon"
        );
    }
    is_gone
}

async fn find(name: &str) -> Option<Orphan> {
    let name = name.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        let lines = fs::read_dir("/proc").ok()?.filter_map(|entry| {
            // A process that has just ended has none.
            fs::read_to_string(entry.ok()?.path().join("cmdline")).ok()
        });
        lines.into_iter().find_map(|line| parse(&line, &name))
    });
    found.await.ok()?
}

/// Reads the arguments of a process.
fn parse(line: &str, name: &str) -> Option<Orphan> {
    let words: Vec<_> = line.split('\0').collect();
    let value = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).copied()
    };
    let is_match = words.first()?.ends_with("conmon") && value("-n") == Some(name);
    is_match.then_some(())?;
    Some(Orphan {
        runtime: value("-r")?.into(),
        id: value("-c")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conmon_is_identified_by_container_name() {
        let line = "/usr/bin/conmon\0--api-version\x001\0-c\0abc\0-u\0abc\0-r\0/usr/bin/runc\0-n\0cynode-a-1.1\0";
        let orphan = parse(line, "cynode-a-1.1").unwrap();
        assert_eq!(
            (orphan.runtime, orphan.id),
            ("/usr/bin/runc".into(), "abc".to_owned())
        );
        assert!(parse(line, "cynode-a-1").is_none());
        assert!(parse(&line.replace("conmon", "grep"), "cynode-a-1.1").is_none());
        assert!(parse("", "x").is_none());
    }
}
