//! Sandbox that a command is about: its paths in the User API, and the commands that continue with it.

use crate::{
    api::TaskId,
    client::{api_client::ApiClient, quote::quoted},
    exit::Failure,
    http::query::encode,
};
use serde::Deserialize;

/// Kind of a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Sandbox that stays.
    Sandbox,
    /// Sandbox of a running task.
    Task,
}

/// Sandbox, by a name or an id of its user's.
#[derive(Clone, Debug)]
pub(super) struct Target {
    kind: Kind,
    name: String,
    /// Id, once it is known.
    id: Option<TaskId>,
}

/// Part of a sandbox or a task that names it for ever.
#[derive(Deserialize)]
struct Identity {
    id: TaskId,
}

impl Target {
    /// Sandbox that stays.
    pub(super) fn sandbox(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            kind: Kind::Sandbox,
            name,
            id: None,
        }
    }

    /// Sandbox of a running task.
    pub(super) fn task(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            kind: Kind::Task,
            name,
            id: None,
        }
    }

    /// Same sandbox by its id, for several calls: one that gets its name later is another. Fails where there is none.
    pub(super) fn resolve(&self, api: &mut ApiClient) -> Result<Self, Failure> {
        let Identity { id } = api.get(&self.path(""))?;
        Ok(Self {
            id: Some(id),
            ..self.clone()
        })
    }

    /// Path below the sandbox in the User API.
    pub(super) fn path(&self, rest: &str) -> String {
        let all = match self.kind {
            Kind::Sandbox => "sandboxes",
            Kind::Task => "tasks",
        };
        match self.id {
            Some(id) => format!("/v1/{all}/{id}{rest}"),
            None => format!("/v1/{all}/{}{rest}", encode(&self.name)),
        }
    }

    /// Path of an exec.
    pub(super) fn exec(&self, id: &str, rest: &str) -> String {
        self.path(&format!("/execs/{}{rest}", encode(id)))
    }

    /// Command line that follows the output of an exec.
    pub(super) fn follow_hint(&self, exec: &str) -> String {
        format!("cynode sandbox logs {} {exec} -f", self.word())
    }

    /// Command line that comes back to the terminal of an exec.
    pub(super) fn attach_hint(&self, exec: &str) -> String {
        let command = match self.kind {
            Kind::Sandbox => "cynode sandbox shell",
            Kind::Task => "cynode shell",
        };
        format!("{command} {} --attach {exec}", self.word())
    }

    /// Name as a word of a command line.
    pub(super) fn word(&self) -> String {
        quoted(std::slice::from_ref(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_in_paths() {
        let target = Target::sandbox("a b/c");
        assert_eq!(target.path("/exec"), "/v1/sandboxes/a%20b%2Fc/exec");
        assert_eq!(
            target.exec("x?y", "/logs"),
            "/v1/sandboxes/a%20b%2Fc/execs/x%3Fy/logs"
        );
        assert!(target.attach_hint("x").contains("'a b/c' --attach x"));
    }
}
