//! `cynode artifacts …`.

use super::{
    api_client::ApiClient,
    download,
    many::Failures,
    paths,
    print::{self, clean},
    receive, upload,
};
use crate::{
    api::artifacts::{Artifact, ArtifactList},
    cli::{
        ArtifactDeleteArgs, ArtifactDownloadArgs, ArtifactListArgs, ArtifactUploadArgs,
        ArtifactsCommand, OutputFormat,
    },
    exit::Failure,
    terminal::write_failure,
};
use http::Method;
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
        None => file_name(&artifact)?,
    };
    receive::to_file(&mut api, &artifact, &path)?;
    match args.client.output {
        OutputFormat::Json => print::json(&artifact),
        OutputFormat::Text => print::line(&clean(&path.display().to_string())),
    }
}

/// Last part of an artifact's name.
fn file_name(artifact: &Artifact) -> Result<PathBuf, Failure> {
    let name = artifact.name.rsplit('/').next().unwrap_or_default();
    if matches!(name, "" | "." | "..") {
        return Err(Failure::usage(
            "the artifact has no name to write to; use --out FILE",
        ));
    }
    Ok(PathBuf::from(name))
}

fn delete(args: &ArtifactDeleteArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let mut failures = Failures::default();
    let deleted = failures.collect(&args.ids, |id| {
        api.done(Method::DELETE, &paths::artifact(id), None::<&()>)?;
        match args.client.output {
            OutputFormat::Text => print::line(&format!("{} deleted", clean(id))),
            OutputFormat::Json => Ok(()),
        }
    });
    if args.client.output == OutputFormat::Json {
        let deleted: Vec<_> = deleted.iter().map(|(id, ())| id).collect();
        print::json(&serde_json::json!({ "deleted": deleted }))?;
    }
    failures.finish()
}
