//! Features of a node: the parts of a job that older releases don't know, by the names that a report lists in
//! `sandbox.features`. A job is placed only at nodes that have those that it needs.

/// Files in the workspace, sent as contents.
pub const FILES: &str = "files";
/// Files that are collected after the end.
pub const ARTIFACTS: &str = "artifacts";
/// Stdin of the command.
pub const STDIN: &str = "stdin";
/// Limit of processors.
pub const LIMIT_CPUS: &str = "limit-cpus";
/// Limit of memory.
pub const LIMIT_MEMORY: &str = "limit-memory";
/// Limit of processes.
pub const LIMIT_PIDS: &str = "limit-pids";
/// Size of `/dev/shm`, which every node that knows limits can set.
pub const LIMIT_SHM_SIZE: &str = "limit-shm-size";
/// All limits of a sandbox.
pub const LIMITS: &str = "limits";
/// Graphics processors that are exclusive to a job.
pub const GPUS: &str = "gpus";
/// Images that are loaded from an archive.
pub const IMAGE_LOAD: &str = "image-load";
/// Pull policies other than `missing`.
pub const PULL_POLICY: &str = "pull-policy";
/// Whole logs of ended jobs, for the orchestrator to keep.
pub const LOG_ARCHIVE: &str = "log-archive";
/// Prompts, which the model server answers.
pub const PROMPTS: &str = "prompts";
/// Calls of models from a sandbox.
pub const INFERENCE: &str = "inference";
/// Sandboxes that stay, which run commands until they are ended.
pub const SESSIONS: &str = "sessions";
/// Snapshots of sandboxes that stay, and sandboxes that begin from them.
pub const SNAPSHOTS: &str = "snapshots";
/// Secrets, whose values a job gets as variables and which are masked in its output.
pub const SECRETS: &str = "secrets";
/// Hosts on a list, which a sandbox reaches through a proxy of the node.
pub const EGRESS: &str = "egress";
/// TLS that the proxy opens, and secrets that it puts into requests.
pub const EGRESS_TERMINATE: &str = "egress-terminate";

/// Features of single limits, and what each limits.
const LIMIT_NAMES: [(&str, &str); 4] = [
    (LIMIT_CPUS, "cpus"),
    (LIMIT_MEMORY, "memory"),
    (LIMIT_PIDS, "pids"),
    (LIMIT_SHM_SIZE, "shm_size"),
];

/// Limit that a feature enforces; `None` for one that is no single limit.
pub fn limit_name(feature: &str) -> Option<&'static str> {
    let mut names = LIMIT_NAMES.into_iter();
    names.find_map(|(name, limit)| (name == feature).then_some(limit))
}

/// Whether a node that reports some features has another: all limits are each of them.
pub fn includes(reported: &[String], feature: &str) -> bool {
    let has = |name: &str| reported.iter().any(|known| known == name);
    has(feature) || (limit_name(feature).is_some() && has(LIMITS))
}

/// Whether a node that does not report a feature is of a release that knows it, so that it lacks what the feature
/// needs. Limits and graphics processors depend on the machine, and came in one release.
pub fn is_known(reported: &[String], feature: &str) -> bool {
    let depends = feature == GPUS || feature == LIMITS || limit_name(feature).is_some();
    depends && includes(reported, LIMIT_SHM_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_limits_include_each() {
        let reported = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        assert!(includes(&reported(&[LIMITS]), LIMIT_MEMORY));
        assert!(!includes(&reported(&[LIMIT_PIDS]), LIMIT_MEMORY));
        assert!(!includes(&reported(&[LIMITS]), GPUS));
        let part = reported(&[LIMIT_SHM_SIZE]);
        assert!(is_known(&part, LIMIT_CPUS) && is_known(&part, GPUS));
        assert!(!is_known(&part, FILES) && !is_known(&[], LIMIT_CPUS));
    }
}
