//! Files of a sandbox, served inside of it.
//!
//! Files are read and written by a process in the sandbox's own namespaces, as its user: nothing of the node ever
//! resolves a path that a job controls. Init starts this process for one call. Its stdin and stdout are a connected Unix
//! socket, which the worker passes the call on to, and it answers one HTTP/1.1 request and ends. Blocking code and few
//! allocations keep it small and quick to start.
//!
//! | call | |
//! |---|---|
//! | `GET /files?path=` | a file or one range of it: its bytes, its mode in `cynode-file-mode`, `Last-Modified` |
//! | `PUT /files?path=&mode=` | replaces a file in one piece: 201 for a new one, else 204 |
//! | `DELETE /files?path=&recursive=` | removes a file, a link, a directory |
//! | `GET /files:list?path=&depth=` | entries of a directory, sorted ([`list`]) |
//! | `POST /files:mkdir` | makes a directory and those above it: 201, or 204 where it is there |
//! | `POST /files:move` | gives a file or directory another path: 204 |
//! | `GET /archive?path=` | a tar archive of a directory or a file ([`bundle`]) |
//! | `PUT /archive?path=` | unpacks a tar archive into a directory: 204 |
//!
//! A relative path begins at the workspace. In a query it may have any bytes, percent-encoded; in JSON it is text, and a
//! list has U+FFFD in place of bytes that are not UTF-8. Links are followed as a command would follow them. Only regular
//! files are read and written: a FIFO, a device or a socket is refused without a wait.
//!
//! The process is not dumpable, so that a command can't trace it, and a connection that ends in the middle of a body
//! leaves nothing.

#![cfg(target_os = "linux")]

mod answer;
mod bundle;
mod entries;
mod failure;
mod list;
mod query;
mod request;
mod transfer;

use crate::{
    api::{
        problem::{Problem, ProblemKind},
        sandboxes::files::{MAX_LIST_DEPTH, MakeDirectory, MoveFile},
    },
    sandbox_init::WORKSPACE,
};
use answer::{Answer, send_problem};
use http::StatusCode;
use query::{Query, invalid};
use request::{Body, Connection, Head, HeadError};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read as _, stdin},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
};

/// Argument by which the binary knows that it is the file server of a sandbox.
pub const ARGUMENT: &str = "__sandbox-files";

/// Longest JSON body, in bytes: two paths, each byte of them escaped.
const MAX_JSON_BYTES: u64 = 64 << 10;

/// Serves the connection that stdin is.
pub fn main() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let stream = UnixStream::from(stdin().as_fd().try_clone_to_owned()?);
    serve(stream, Path::new(WORKSPACE))
}

/// Answers one request. Relative paths begin at `workspace`. Fails where the connection does.
fn serve(stream: UnixStream, workspace: &Path) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    let output = connection.output().try_clone()?;
    let head = match connection.read_head() {
        Ok(Some(head)) => head,
        Ok(None) => return Ok(()),
        Err(HeadError::Io(error)) => return Err(error),
        Err(HeadError::Invalid(detail)) => {
            send_problem(&output, &invalid(detail), "", false)?;
            connection.drain();
            return Ok(());
        }
    };
    let is_head = head.method == "HEAD";
    let mut body = connection.body(&head);
    match answer(&head, &mut body, workspace) {
        Ok(answer) => answer.send(&output, is_head)?,
        Err(problem) => send_problem(&output, &problem, &head.id, is_head)?,
    }
    body.drain();
    Ok(())
}

fn answer(head: &Head, body: &mut Body<'_>, workspace: &Path) -> Result<Answer, Problem> {
    let query = Query(&head.query);
    let path = || query::resolve(workspace, &query.path()?);
    let text_path = |path: &str| query::resolve(workspace, path.as_bytes());
    match (head.method.as_str(), head.path.as_str()) {
        ("GET" | "HEAD", "/files") => transfer::get(&path()?, head),
        ("PUT", "/files") => {
            let named = query.path()?;
            if named.ends_with(b"/") {
                return Err(invalid(
                    "`path` ends with a slash, as that of a directory; name the file, or make a directory with files:mkdir",
                ));
            }
            let path = query::resolve(workspace, &named)?;
            transfer::put(&path, query.mode()?, body)
        }
        ("DELETE", "/files") => {
            entries::remove(&path()?, workspace, query.flag("recursive")?)?;
            Ok(Answer::Empty(StatusCode::NO_CONTENT))
        }
        ("GET" | "HEAD", "/files:list") => {
            let depth = query.number("depth", 1, MAX_LIST_DEPTH)?.unwrap_or(1);
            json(&list::list(&path()?, depth)?)
        }
        ("POST", "/files:mkdir") => {
            let MakeDirectory { path } = parse(body)?;
            let is_new = entries::make_directory(&text_path(&path)?)?;
            Ok(Answer::Empty(if is_new {
                StatusCode::CREATED
            } else {
                StatusCode::NO_CONTENT
            }))
        }
        ("POST", "/files:move") => {
            let MoveFile { from, to } = parse(body)?;
            entries::rename(&text_path(&from)?, &text_path(&to)?)?;
            Ok(Answer::Empty(StatusCode::NO_CONTENT))
        }
        ("GET" | "HEAD", "/archive") => bundle::get(&path()?),
        ("PUT", "/archive") => bundle::put(&path()?, body),
        (method, path) => Err(no_route(method, path)),
    }
}

/// 405 for a path that takes other methods, else 404.
fn no_route(method: &str, path: &str) -> Problem {
    let allow = match path {
        "/files" => "GET, HEAD, PUT, DELETE",
        "/files:list" => "GET, HEAD",
        "/files:mkdir" | "/files:move" => "POST",
        "/archive" => "GET, HEAD, PUT",
        _ => {
            let detail = "there is no such call; files, files:list, files:mkdir, files:move and archive are there";
            return Problem::new(ProblemKind::NotFound, detail);
        }
    };
    let mut problem = Problem::new(
        ProblemKind::MethodNotAllowed,
        format!("{path} takes {allow}, not {method}"),
    );
    problem.allow = Some(allow.to_owned());
    problem
}

fn json(value: &impl Serialize) -> Result<Answer, Problem> {
    let body = serde_json::to_vec(value);
    body.map(Answer::Json).map_err(|_| Problem::internal())
}

/// Body as JSON.
fn parse<T: DeserializeOwned>(body: &mut Body<'_>) -> Result<T, Problem> {
    let mut bytes = Vec::new();
    let read = body.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes);
    if read.is_err() {
        return Err(transfer::ended_early());
    }
    if bytes.len() as u64 > MAX_JSON_BYTES {
        let detail = format!("the body is larger than {MAX_JSON_BYTES} bytes; send less");
        return Err(Problem::new(ProblemKind::PayloadTooLarge, detail));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| invalid(format!("the body is not what this call takes: {error}")))
}

#[cfg(test)]
mod tests;
