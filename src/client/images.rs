//! `cynode images …`.
//!
//! An image goes as an archive: into a file without a name, which vanishes with this process however it ends, then to
//! the orchestrator as an artifact, which is deleted once the node has it, or has refused it.

use super::{
    api_client::ApiClient,
    paths,
    print::{self, clean},
    upload,
};
use crate::{
    api::{
        auth::User,
        images::{LOAD_LIMIT, PushImage, PushedImages},
        nodes::{NodeStatus, NodeView},
    },
    cli::{ImagePushArgs, ImagesCommand, OutputFormat},
    engine,
    exit::{Exit, Failure},
};
use http::Method;
use std::{env, fs::File, path::PathBuf, time::Duration};

/// Longest wait for a node to get and load an archive.
const PUSH_TIMEOUT: Duration = LOAD_LIMIT.saturating_mul(8);
/// Directory for an archive where TMPDIR names none: not /tmp, which may be memory.
const DEFAULT_TEMPORARY_DIR: &str = "/var/tmp";

/// Runs a subcommand of `cynode images`.
pub fn images(command: ImagesCommand) -> Result<(), Failure> {
    match command {
        ImagesCommand::Push(args) => push(&args),
    }
}

fn push(args: &ImagePushArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    ensure_possible(&mut api, &args.node)?;
    print::note(&format!("saving {}", clean(&args.image)));
    let archive = save(args)?;
    let artifact = upload::send_open_file(&mut api, &archive, &args.image)?;
    drop(archive);
    let wanted = PushImage {
        artifact_id: artifact.artifact_id,
    };
    print::note(&format!("loading it at {}", clean(&args.node)));
    let pushed: Result<PushedImages, Failure> = api.with_patience(PUSH_TIMEOUT).call(
        Method::POST,
        &paths::node(&args.node, "/images"),
        Some(&wanted),
    );
    let id = artifact.artifact_id.to_string();
    let deleted = api.done(Method::DELETE, &paths::artifact(&id), None::<&()>);
    let pushed = pushed?;
    if let Err(failure) = deleted {
        let reason = failure.message;
        print::note(&format!(
            "warning: the uploaded archive stays as artifact {id}: {reason}"
        ));
    }
    if args.client.output == OutputFormat::Json {
        return print::json(&pushed);
    }
    pushed
        .images
        .iter()
        .try_for_each(|image| print::line(&clean(image)))
}

/// Fails where the push can't succeed, before much is saved and sent.
fn ensure_possible(api: &mut ApiClient, slug: &str) -> Result<(), Failure> {
    let user: User = api.get("/v1/users/me")?;
    if !user.is_admin {
        let text = "only admins push images to nodes; ask one of them";
        return Err(Failure::new(Exit::NotAllowed, text));
    }
    let node: NodeView = api.get(&paths::node(slug, ""))?;
    if node.status == NodeStatus::Offline {
        let reason = node.reason.unwrap_or_default();
        let text = format!(
            "node {} is offline: {}; try again when it is back",
            clean(slug),
            clean(&reason)
        );
        return Err(Failure::new(Exit::Conflict, text));
    }
    Ok(())
}

/// Saves the image to a file that has no name.
fn save(args: &ImagePushArgs) -> Result<File, Failure> {
    let directory = env::var_os("TMPDIR").filter(|directory| !directory.is_empty());
    let directory = directory.map_or_else(|| DEFAULT_TEMPORARY_DIR.into(), PathBuf::from);
    let archive = tempfile::tempfile_in(&directory).map_err(|error| {
        let place = directory.display();
        Failure::usage(format!(
            "the image can't be saved in {place}: {error}; name another directory with TMPDIR"
        ))
    })?;
    let podman = args.engine.clone().unwrap_or_else(|| "podman".into());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let saved = engine::save_image(&podman, &args.image, archive.try_clone()?);
    let saved = runtime.block_on(saved);
    saved.map_err(|error| Failure::usage(clean(&error.to_string())))?;
    Ok(archive)
}
