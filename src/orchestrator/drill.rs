//! Drill: an orchestrator on a restored copy of a data directory, for an exercise.
//!
//! The orchestrator in service still runs, with the same nodes. A second one on the same database would cancel, fetch
//! and remove the jobs of the first, and a node that registers here would be lost there. So a drill calls no node, takes
//! no call of a node, and gives users only what reads:
//!
//! | part | in a drill |
//! |---|---|
//! | calls to nodes | [`AppState::callable_url`](super::AppState::callable_url) is `None`, so that there is no client |
//! | calls of nodes | 503 |
//! | calls of users | reads, login, refresh and logout; others are 503, and so are terminals |
//! | background tasks | the watch of the storage alone: nothing is scheduled, followed, expired or deleted |
//!
//! The database of an earlier release is migrated all the same, and sessions are stored. A data directory that was not
//! restored is refused before anything is created in it.

use super::{StartError, database};
use crate::{
    api::problem::{Problem, ProblemKind},
    identity::Keys,
    store,
};
use http::Method;
use std::path::Path;

/// Text for everybody who asks for more than a drill gives.
pub(super) const REASON: &str = "this orchestrator runs as a drill (--drill), on a restored copy: it calls no nodes and changes nothing; \
    use the orchestrator that is in service";
/// Reason of each node.
pub(super) const NODE_REASON: &str =
    "this orchestrator runs as a drill (--drill) and calls no nodes";
/// Error of a start on a data directory without users.
const NO_USERS: &str = "--drill needs the data directory of a restored backup, and this one has no users; restore cynode.db \
    and keys/ there first, or start without --drill";
/// Paths of sessions, which a drill opens and ends.
const SESSION_PATHS: [&str; 3] = ["/v1/auth/login", "/v1/auth/refresh", "/v1/auth/logout"];
/// End of the paths of terminals, which are no reads though they are opened with GET.
const TERMINAL_SUFFIX: &str = "/terminal";

/// Fails where a data directory was not restored completely: it has no users, or keys are missing, which a drill does not
/// create. With `has_psk` the operator passes the pre-shared key.
pub(super) fn check_restored(data_dir: &Path, has_psk: bool) -> Result<(), StartError> {
    let database = data_dir.join("cynode.db");
    // An unreadable database is reported when it is opened.
    if store::is_empty(&database)? || !store::has_users(&database).unwrap_or(true) {
        return Err(StartError::Setting(NO_USERS.to_owned()));
    }
    let missing = Keys::missing(data_dir, has_psk);
    if missing.is_empty() {
        return Ok(());
    }
    Err(StartError::Setting(format!(
        "a drill creates no keys, and these are missing: {}; restore keys/ from the backup; if only the pre-shared key is \
         missing, pass it with --psk-file",
        database::names(&missing)
    )))
}

/// Refusal of a call.
pub(super) fn problem() -> Problem {
    Problem::new(ProblemKind::Unavailable, REASON)
}

/// Whether a call of a user is refused: it could change something, as a terminal could.
pub(super) fn is_refused_to_users(method: &Method, path: &str) -> bool {
    let is_read = *method == Method::GET && !path.ends_with(TERMINAL_SUFFIX);
    !is_read && !SESSION_PATHS.contains(&path)
}

/// Whether a call of a node is refused: all are, but those for health and metrics.
pub(super) fn is_refused_to_nodes(_: &Method, path: &str) -> bool {
    path.starts_with("/v1/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_and_sessions_are_served() {
        for (method, path, is_refused) in [
            (Method::GET, "/v1/tasks", false),
            (Method::POST, "/v1/auth/login", false),
            (Method::POST, "/v1/auth/logout", false),
            (Method::POST, "/v1/tasks", true),
            (Method::POST, "/v1/users/me/password", true),
            (Method::DELETE, "/v1/tasks/{id}", true),
            (Method::POST, "/v1/chat/completions", true),
            (Method::PUT, "/v1/sandboxes/{id}/files", true),
            (Method::GET, "/v1/sandboxes/{id}/files", false),
            (Method::GET, "/v1/sandboxes/{id}/terminal", true),
            (Method::GET, "/v1/tasks/{id}/terminal", true),
        ] {
            assert_eq!(is_refused_to_users(&method, path), is_refused, "{path}");
        }
        assert!(is_refused_to_nodes(&Method::GET, "/v1/nodes/config"));
        assert!(!is_refused_to_nodes(&Method::GET, "/readyz"));
    }
}
