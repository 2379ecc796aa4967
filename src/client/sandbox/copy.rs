//! `cynode sandbox cp`: which way, and what is there.

use super::{
    local::{Place, SandboxPath},
    receive, send,
    target::Target,
};
use crate::{
    api::sandboxes::{Sandbox, files::FileList},
    cli::{OutputFormat, SandboxCpArgs},
    client::{api_client::ApiClient, paths, print},
    exit::{Exit, Failure},
};
use std::path::Path;

/// Copies files into a sandbox or out of it.
pub(super) fn copy(args: &SandboxCpArgs) -> Result<(), Failure> {
    let (from, to) = (Place::parse(&args.from)?, Place::parse(&args.to)?);
    let name = match (&from, &to) {
        (Place::Sandbox(..), Place::Sandbox(..)) => {
            let text = "both paths are in sandboxes; copy through a pipe: cynode sandbox cp A:PATH - | cynode sandbox cp - B:PATH";
            return Err(Failure::usage(text));
        }
        (Place::Sandbox(name, _), _) | (_, Place::Sandbox(name, _)) => name.clone(),
        _ => {
            let text = "one of both paths has to be in a sandbox: NAME:PATH";
            return Err(Failure::usage(text));
        }
    };
    let mut api = ApiClient::from_args(&args.client)?;
    let target = Target::sandbox(&name);
    // Says where there is no such sandbox, and renews a login: a body is sent only once.
    let _: Sandbox = api.get(&target.path(""))?;
    let copied = match (&from, &to) {
        (Place::Local(from), Place::Sandbox(_, to)) => send::path(&mut api, &target, from, to)?,
        (Place::Stream, Place::Sandbox(_, to)) => send::stdin(&mut api, &target, to)?,
        (Place::Sandbox(_, from), Place::Local(to)) => receive::path(&mut api, &target, from, to)?,
        (Place::Sandbox(_, from), _) => return receive::stdout(&mut api, &target, from),
        _ => return Ok(()),
    };
    match args.client.output {
        OutputFormat::Json => print::json(&serde_json::json!({ "path": copied })),
        OutputFormat::Text => Ok(()),
    }
}

/// Kind of the file at a path of a sandbox; links are followed.
pub(super) enum Found {
    Nothing,
    Directory,
    File,
}

/// Looks what there is at a path: a list of a file has that file, and one of a directory what is in it.
pub(super) fn look(
    api: &mut ApiClient,
    target: &Target,
    path: &SandboxPath,
) -> Result<Found, Failure> {
    let query = [("path", Some(path.path.as_str()))];
    let list: FileList = match api.get(&paths::with_query(&target.path("/files:list"), &query)) {
        Ok(list) => list,
        Err(failure) if failure.exit == Exit::NotFound => return Ok(Found::Nothing),
        Err(failure) => return Err(failure),
    };
    let itself = list.entries.into_iter().next();
    let itself = itself.filter(|entry| Path::new(&entry.path) == Path::new(&path.path));
    Ok(itself.map_or(Found::Directory, |_| Found::File))
}
