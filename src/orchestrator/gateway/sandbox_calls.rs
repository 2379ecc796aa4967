//! Calls that pass to the node of a sandbox: execs, files, terminals. Those of execs and terminals are served for running
//! tasks, too.

use super::{AppState, authenticate};
use crate::{
    api::{
        ExecId,
        api_keys::Scope,
        error::ApiError,
        problem::Problem,
        sandboxes::exec::{MAX_EXEC_STDIN_BYTES, StartExec},
    },
    http::{request::Request, response::Reply, router::RouterBuilder},
    identity::Access,
    orchestrator::sandboxes::{self, PassCaller, PassedCall, Place},
};
use http::Method;
use std::sync::Arc;

/// Largest body of an exec: stdin with its escapes, a script and an environment.
const MAX_EXEC_BODY_BYTES: usize = MAX_EXEC_STDIN_BYTES + 4 * 1024 * 1024;

/// Adds the routes.
pub(super) fn routes(builder: RouterBuilder<AppState>) -> RouterBuilder<AppState> {
    use Method as M;
    let builder = builder
        .route(M::POST, "/v1/sandboxes/{id}/exec", exec)
        .route(M::GET, "/v1/sandboxes/{id}/execs", pass)
        .route(M::GET, "/v1/sandboxes/{id}/execs/{exec}", pass)
        .route(M::GET, "/v1/sandboxes/{id}/execs/{exec}/logs", read_logs)
        .route(M::POST, "/v1/sandboxes/{id}/execs/{exec}/stdin", pass)
        .route(M::POST, "/v1/sandboxes/{id}/execs/{exec}/signal", pass)
        .route(M::POST, "/v1/sandboxes/{id}/execs/{exec}/resize", pass)
        .route(M::GET, "/v1/sandboxes/{id}/terminal", terminal)
        .route(M::GET, "/v1/sandboxes/{id}/files", pass)
        .route(M::PUT, "/v1/sandboxes/{id}/files", pass)
        .route(M::DELETE, "/v1/sandboxes/{id}/files", pass)
        .route(M::GET, "/v1/sandboxes/{id}/files:list", pass)
        .route(M::POST, "/v1/sandboxes/{id}/files:mkdir", pass)
        .route(M::POST, "/v1/sandboxes/{id}/files:move", pass)
        .route(M::GET, "/v1/sandboxes/{id}/archive", pass)
        .route(M::PUT, "/v1/sandboxes/{id}/archive", pass);
    builder
        .route(M::POST, "/v1/tasks/{id}/exec", exec)
        .route(M::GET, "/v1/tasks/{id}/execs", pass)
        .route(M::GET, "/v1/tasks/{id}/execs/{exec}", pass)
        .route(M::GET, "/v1/tasks/{id}/execs/{exec}/logs", read_logs)
        .route(M::POST, "/v1/tasks/{id}/execs/{exec}/stdin", pass)
        .route(M::POST, "/v1/tasks/{id}/execs/{exec}/signal", pass)
        .route(M::POST, "/v1/tasks/{id}/execs/{exec}/resize", pass)
        .route(M::GET, "/v1/tasks/{id}/terminal", terminal)
}

/// Target of a request: what its sandbox belongs to, the path below that, and the query.
#[derive(PartialEq, Eq, Debug)]
struct PassedPath<'a> {
    place: Place,
    rest: &'a str,
    query: Option<&'a str>,
}

impl<'a> PassedPath<'a> {
    /// Target of a request for one of the routes.
    fn of(path_and_query: &'a str) -> Self {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut parts = path.splitn(5, '/').skip(2);
        let place = match parts.next() {
            Some("tasks") => Place::Task,
            _ => Place::Sandbox,
        };
        let rest = parts.nth(1).unwrap_or_default();
        Self { place, rest, query }
    }

    /// Path below the sandbox at its node, with the query; `exec` in place of the id in the path.
    fn at_node(&self, exec: Option<ExecId>) -> String {
        let path = match (exec, self.rest.split('/').nth(2)) {
            (None, _) => self.rest.to_owned(),
            (Some(exec), None) => format!("execs/{exec}"),
            (Some(exec), Some(call)) => format!("execs/{exec}/{call}"),
        };
        match self.query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        }
    }
}

/// Authenticates the caller. Their session or key may end while the call is under way.
pub(super) async fn pass_caller(
    state: &AppState,
    request: &Request,
) -> Result<PassCaller, ApiError> {
    // Subscribed before the authentication, so that no end of the session is missed.
    let revocations = state.identity.revocations();
    let access = match PassedPath::of(request.path_and_query()).place {
        Place::Sandbox => Access::Scope(Scope::Sandboxes),
        Place::Task => Access::Scope(Scope::Tasks),
    };
    Ok(PassCaller {
        caller: authenticate(state, request, access).await?,
        revocations,
    })
}

/// Call as it passes: below the sandbox that the request names, with the request's query.
fn passed_call(request: &Request) -> Result<PassedCall, Problem> {
    let target = PassedPath::of(request.path_and_query());
    let thing = match target.place {
        Place::Sandbox => "sandbox",
        Place::Task => "task",
    };
    let has_exec = target.rest.starts_with("execs/");
    let exec = has_exec
        .then(|| request.param("exec", "exec"))
        .transpose()?;
    // The node warns of those that it does not know.
    request.mark_parameters_known();
    Ok(PassedCall {
        place: target.place,
        name: request.param("id", thing)?,
        path: target.at_node(exec),
        is_typed: target.rest.ends_with("/stdin"),
    })
}

async fn pass(state: Arc<AppState>, request: Request) -> Reply {
    let caller = pass_caller(&state, &request).await?;
    let call = passed_call(&request)?;
    sandboxes::pass(&state, caller, call, request).await
}

/// Passes a call of a reader of output on, who resumes where it was cut.
async fn read_logs(state: Arc<AppState>, request: Request) -> Reply {
    let caller = pass_caller(&state, &request).await?;
    let call = passed_call(&request)?;
    request.mark_preemptible();
    sandboxes::pass(&state, caller, call, request).await
}

async fn exec(state: Arc<AppState>, mut request: Request) -> Reply {
    let caller = pass_caller(&state, &request).await?;
    let call = passed_call(&request)?;
    request.allow_body(MAX_EXEC_BODY_BYTES);
    let start: StartExec = request.json().await?;
    sandboxes::exec(&state, caller, call, start, request).await
}

async fn terminal(state: Arc<AppState>, request: Request) -> Reply {
    let caller = pass_caller(&state, &request).await?;
    let mut call = passed_call(&request)?;
    let known: Option<ExecId> = request.query_as("exec_id", "the id of an exec, a UUID")?;
    let id = known.unwrap_or_else(ExecId::new);
    if known.is_none() {
        let separator = if call.path.contains('?') { '&' } else { '?' };
        call.path = format!("{}{separator}exec_id={id}", call.path);
    }
    sandboxes::terminal(&state, caller, call, id, request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_passes_without_name_and_with_query() {
        let id = ExecId::new();
        for (target, exec, place, passed) in [
            (
                "/v1/sandboxes/a%2Fb/execs",
                None,
                Place::Sandbox,
                "execs".to_owned(),
            ),
            (
                "/v1/tasks/t/exec?encoding=base64",
                None,
                Place::Task,
                "exec?encoding=base64".to_owned(),
            ),
            (
                "/v1/sandboxes/a/files:list?path=%2F..",
                None,
                Place::Sandbox,
                "files:list?path=%2F..".to_owned(),
            ),
            (
                "/v1/sandboxes/a/execs/x",
                Some(id),
                Place::Sandbox,
                format!("execs/{id}"),
            ),
            (
                "/v1/tasks/a/execs/%78/logs?a=/b",
                Some(id),
                Place::Task,
                format!("execs/{id}/logs?a=/b"),
            ),
        ] {
            let path = PassedPath::of(target);
            assert_eq!(
                (path.place, path.at_node(exec)),
                (place, passed),
                "{target}"
            );
        }
    }
}
