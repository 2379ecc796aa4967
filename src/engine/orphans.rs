//! What a podman that was killed while it made a container leaves running.
//!
//! Podman starts conmon, and conmon has the runtime make the container. A podman that is killed before
//! it has noted that leaves a container of which its database doesn't know that it is there: `podman
//! rm` then removes what it knows of, and conmon waits forever for a container that nobody starts. We
//! know it by its name, which stands among conmon's arguments with the runtime and the id.

use super::{CONTAINER_REMOVAL_TIMEOUT, Program, call};
use std::{fs, path::PathBuf, time::Duration};

/// How long such a container may take to go.
const ORPHAN_REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);
const ORPHAN_RETRY_DELAY: Duration = Duration::from_millis(50);

/// One conmon.
struct Orphan {
    runtime: PathBuf,
    id: String,
}

/// Has the runtime itself remove the container of this name, which podman doesn't know any more, as
/// often as it takes: conmon may just be making it. Whether no conmon is left.
pub(super) async fn remove_orphan(name: &str) -> bool {
    let removed = async {
        while let Some(Orphan { runtime, id }) = find(name) {
            let arguments = ["delete", "--force", &id];
            let runtime = Program::plain(runtime);
            if let Err(error) = call(&runtime, &arguments, CONTAINER_REMOVAL_TIMEOUT, |_| ()).await
            {
                tracing::debug!(name, id, %error, "the runtime could not remove a container");
            }
            tokio::time::sleep(ORPHAN_RETRY_DELAY).await;
        }
    };
    let is_gone = tokio::time::timeout(ORPHAN_REMOVAL_TIMEOUT, removed)
        .await
        .is_ok();
    if !is_gone {
        tracing::warn!(
            name,
            "conmon of a removed container doesn't end; see: ps ax | grep conmon"
        );
    }
    is_gone
}

fn find(name: &str) -> Option<Orphan> {
    let lines = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        // One that has ended meanwhile has none.
        fs::read_to_string(entry.ok()?.path().join("cmdline")).ok()
    });
    lines.into_iter().find_map(|line| parse(&line, name))
}

fn parse(line: &str, name: &str) -> Option<Orphan> {
    let words: Vec<_> = line.split('\0').collect();
    let value = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).copied()
    };
    let is_it = words.first()?.ends_with("conmon") && value("-n") == Some(name);
    is_it.then_some(())?;
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
