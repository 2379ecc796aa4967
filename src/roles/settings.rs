//! From flags, files and environment to checked settings.

use crate::{
    api::{
        image::ImageRef,
        nodes::{check_url, slug_from_host_name},
    },
    cli::{EngineFlags, Psk, State},
    data_dir::DataDir,
    exit::Failure,
    worker,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

pub(super) fn open_data_dir(state: &State) -> Result<DataDir, Failure> {
    Ok(DataDir::open(&data_dir_path(state)?)?)
}

/// Where state is kept: as the operator says, or by default.
pub(crate) fn data_dir_path(state: &State) -> Result<PathBuf, Failure> {
    match &state.data_dir {
        Some(path) => Ok(path.clone()),
        None => default_data_dir(),
    }
}

/// `/var/lib/cynode` for root, else the XDG state directory.
fn default_data_dir() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/cynode"));
    }
    let from = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    from("XDG_STATE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/state")))
        .map(|path| path.join("cynode"))
        .ok_or_else(|| {
            Failure::usage(
                "neither XDG_STATE_HOME nor HOME is set; name a directory with --data-dir",
            )
        })
}

/// A secret from a file, or else from the environment.
pub fn secret(
    flag: &str,
    file: Option<&Path>,
    variable: &str,
) -> Result<Option<Zeroizing<String>>, Failure> {
    let text = match file {
        Some(path) => Zeroizing::new(
            std::fs::read_to_string(path)
                .map_err(|error| Failure::usage(format!("{flag} {}: {error}", path.display())))?,
        ),
        None => match std::env::var(variable) {
            Ok(text) => Zeroizing::new(text),
            Err(_) => return Ok(None),
        },
    };
    let text = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if text.is_empty() {
        let what = file.map_or_else(|| variable.to_owned(), |path| path.display().to_string());
        return Err(Failure::usage(format!(
            "{what} is empty; it must hold the secret"
        )));
    }
    Ok(Some(text))
}

/// By hand and not by clap, for which a variable and the other one's flag would be in conflict: a
/// flag of either kind beats a variable of either kind.
pub(super) fn psk(psk: &Psk) -> Result<Option<Zeroizing<String>>, Failure> {
    if let Some(text) = &psk.psk {
        if text.is_empty() {
            return Err(Failure::usage(
                "--psk is empty; it must be the pre-shared key",
            ));
        }
        return Ok(Some(Zeroizing::new(text.clone())));
    }
    if psk.psk_file.is_some() || std::env::var_os("CYNODE_PSK").is_some() {
        return secret("--psk-file", psk.psk_file.as_deref(), "CYNODE_PSK");
    }
    let file = std::env::var_os("CYNODE_PSK_FILE").map(PathBuf::from);
    file.map_or(Ok(None), |file| secret("CYNODE_PSK_FILE", Some(&file), ""))
}

pub(super) fn admin_password(file: Option<&Path>) -> Result<Option<Zeroizing<String>>, Failure> {
    secret("--admin-password-file", file, "CYNODE_ADMIN_PASSWORD")
}

pub(super) fn image(flag: &str, text: &str) -> Result<ImageRef, Failure> {
    text.parse()
        .map_err(|error| Failure::usage(format!("{flag} {text:?}: {error}")))
}

pub(super) fn checked_url(flag: &str, url: String) -> Result<String, Failure> {
    check_url("", &url).map_err(|problem| Failure::usage(format!("{flag} {}", problem.detail)))?;
    Ok(url)
}

pub(super) fn worker_urls(pairs: &[String]) -> Result<HashMap<String, String>, Failure> {
    pairs
        .iter()
        .map(|pair| {
            let (slug, url) = pair.split_once('=').ok_or_else(|| {
                Failure::usage(format!("--worker-url {pair:?}: write it as SLUG=URL"))
            })?;
            Ok((
                slug.to_owned(),
                checked_url("--worker-url", url.to_owned())?,
            ))
        })
        .collect()
}

pub(super) fn sandbox_settings(
    flags: &EngineFlags,
    default_image: Option<&str>,
) -> Result<worker::Settings, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(worker::Settings {
        max_concurrency: flags.max_concurrency.map_or(cores, |n| n as usize),
        allowed_images: flags.allowed_image.clone(),
        default_image: default_image
            .map(|text| image("--default-image", text))
            .transpose()?,
        engine: flags.podman.engine.clone(),
        engine_runtime: flags.podman.engine_runtime.clone(),
    })
}

pub(super) fn host_slug() -> String {
    slug_from_host_name(&rustix::system::uname().nodename().to_string_lossy())
}
