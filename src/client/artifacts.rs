//! `cynode artifacts …`.

use super::{
    api_client::ApiClient,
    download, many, paths,
    print::{self, clean},
    receive, upload,
};
use crate::{
    api::artifacts::{Artifact, ArtifactList},
    cli::{
        ArtifactDeleteArgs, ArtifactDownloadArgs, ArtifactListArgs, ArtifactUploadArgs,
        ArtifactsCommand, OutputFormat,
    },
    exit::{Exit, Failure},
    terminal::write_failure,
};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Runs a subcommand of `cynode artifacts`.
pub fn artifacts(command: ArtifactsCommand) -> Result<(), Failure> {
    match command {
        ArtifactsCommand::List(args) => list(&args),
        ArtifactsCommand::Upload(args) => upload(&args),
        ArtifactsCommand::Download(args) => download(&args),
        ArtifactsCommand::Delete(args) => delete(&args),
    }
}

fn list(args: &ArtifactListArgs) -> Result<(), Failure> {
    let limit = args.limit.to_string();
    let query = [
        ("limit", Some(limit.as_str())),
        ("cursor", args.cursor.as_deref()),
    ];
    let path = paths::with_query("/v1/artifacts", &query);
    let list: ArtifactList = ApiClient::from_args(&args.client)?.get(&path)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&list);
    }
    download::print_list(&list.artifacts)?;
    if !list.next_cursor.is_empty() {
        print::note(&format!(
            "More artifacts: --cursor {}",
            clean(&list.next_cursor)
        ));
    }
    Ok(())
}

fn upload(args: &ArtifactUploadArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let artifact = upload::send_path(&mut api, &args.path, args.name.as_deref())?;
    match args.client.output {
        OutputFormat::Json => print::json(&artifact),
        OutputFormat::Text => print::line(&artifact.artifact_id.to_string()),
    }
}

fn download(args: &ArtifactDownloadArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let artifact: Artifact = api.artifact(&args.id)?;
    if args.out.as_deref() == Some(Path::new("-")) {
        let mut out = io::stdout().lock();
        receive::copy(&mut api, &artifact, &mut out)?;
        return out.flush().map_err(write_failure);
    }
    let path = match &args.out {
        Some(path) => path.clone(),
        None => new_file(&artifact)?,
    };
    receive::to_file(&mut api, &artifact, &path)?;
    match args.client.output {
        OutputFormat::Json => print::json(&artifact),
        OutputFormat::Text => print::line(&clean(&path.display().to_string())),
    }
}

/// File for an artifact in this directory. The sandbox chooses names, so it must not choose a file of the user's.
fn new_file(artifact: &Artifact) -> Result<PathBuf, Failure> {
    let name = file_name(&artifact.name)
        .ok_or_else(|| Failure::usage("the artifact has no name to write to; use --out FILE"))?;
    let path = PathBuf::from(name);
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(error) => Err(error.into()),
        Ok(_) => {
            let text = format!("{} exists; to replace it, use --out FILE", clean(name));
            Err(Failure::new(Exit::Conflict, text))
        }
    }
}

/// Last part of an artifact's name, which makes no hidden file. `None` where nothing is left.
fn file_name(name: &str) -> Option<&str> {
    let name = name.rsplit('/').next()?.trim_start_matches('.');
    (!name.is_empty()).then_some(name)
}

fn delete(args: &ArtifactDeleteArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let output = args.client.output;
    many::delete(&mut api, output, &args.ids, "deleted", paths::artifact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_no_hidden_file() {
        for (name, expected) in [
            ("a", Some("a")),
            ("out/a.b", Some("a.b")),
            (".bashrc", Some("bashrc")),
            ("x/...a", Some("a")),
            ("", None),
            ("..", None),
            ("a/", None),
        ] {
            assert_eq!(file_name(name), expected, "{name:?}");
        }
    }
}
