//! Uploads: files and directories that become artifacts, and files of a task.
//!
//! 1. The files are found, and the key of their manifest is computed: paths, modes, sizes, times.
//! 2. A hint of an earlier upload gives the hash of the content. Where files were touched since, they are read again
//!    to be sure. The orchestrator is asked whether it has that content: then nothing is sent.
//! 3. Else the content is sent while it is read and hashed. After a cut it goes on from where the orchestrator
//!    stands.

mod archive;
mod cache;
mod scan;
mod send;
mod spec;

pub(super) use archive::{ContentReader, content_size};
pub(super) use scan::Manifest;
pub(super) use spec::Upload;

use super::{
    api_client::ApiClient,
    patience::patiently,
    print::{self, clean},
};
use crate::{
    api::{artifacts::Artifact, jobs::files::FileMode, tasks::FileInput},
    exit::Failure,
};
use cache::Hint;
use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    time::SystemTime,
};

/// Uploads of the flags; fails before anything is sent.
pub(super) fn parse_all(flags: &[String]) -> Result<Vec<Upload>, Failure> {
    let is_directory = |path: &Path| Some(fs::metadata(path).ok()?.is_dir());
    let parse = |flag: &String| Upload::parse(flag, is_directory);
    flags.iter().map(parse).collect()
}

/// Uploads everything; returns the files of the task.
pub(super) fn send_all(
    api: &mut ApiClient,
    uploads: &[Upload],
) -> Result<Option<Vec<FileInput>>, Failure> {
    let mut files = Vec::new();
    for upload in uploads {
        let scanned = SystemTime::now();
        let manifest = Arc::new(Manifest::scan(&upload.path)?);
        let artifact = send(api, &manifest, &default_name(&manifest), scanned)?;
        let mode = manifest.entries.first().map(|entry| FileMode(entry.mode));
        files.push(FileInput {
            path: upload.dest.clone(),
            artifact_id: Some(artifact.artifact_id),
            mode: mode.filter(|_| !manifest.is_archive),
            extract: manifest.is_archive.then_some(true),
            ..FileInput::default()
        });
    }
    Ok((!files.is_empty()).then_some(files))
}

/// Uploads a file, or a directory as an archive.
pub(super) fn send_path(
    api: &mut ApiClient,
    path: &Path,
    name: Option<&str>,
) -> Result<Artifact, Failure> {
    let scanned = SystemTime::now();
    let manifest = Arc::new(Manifest::scan(path)?);
    let name = name.map_or_else(|| default_name(&manifest), str::to_owned);
    send(api, &manifest, &name, scanned)
}

/// Uploads an open file, which may have no name.
pub(super) fn send_open_file(
    api: &mut ApiClient,
    file: &File,
    name: &str,
) -> Result<Artifact, Failure> {
    let manifest = Arc::new(Manifest::of_open_file(file)?);
    let (key, size) = (manifest.key(), content_size(&manifest));
    Ok(send::send(api, &manifest, name, &key, size)?.0)
}

/// Name of the artifact: that of the file, or of the directory with `.tar`.
fn default_name(manifest: &Manifest) -> String {
    let name = manifest.root.file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    match (&name[..], manifest.is_archive) {
        ("", _) => "root.tar".to_owned(),
        (name, true) => format!("{name}.tar"),
        (name, false) => name.to_owned(),
    }
}

/// Uploads what was found; the search began at `scanned`.
fn send(
    api: &mut ApiClient,
    manifest: &Arc<Manifest>,
    name: &str,
    scanned: SystemTime,
) -> Result<Artifact, Failure> {
    let (key, size) = (manifest.key(), content_size(manifest));
    if manifest.skipped > 0 {
        let (count, root) = (manifest.skipped, manifest.root.display().to_string());
        print::note(&format!(
            "warning: {}: {count} fifos, sockets or devices are left out",
            clean(&root)
        ));
    }
    if let Some(sha256) = known_hash(manifest, &key)?
        && let Some(artifact) = patiently(|| send::find(api, name, &sha256, size))?
    {
        cache::store(&key, &Hint::new(sha256, manifest, scanned));
        return Ok(artifact);
    }
    let (artifact, sha256) = send::send(api, manifest, name, &key, size)?;
    cache::store(&key, &Hint::new(sha256, manifest, scanned));
    Ok(artifact)
}

/// Hash of the content, where an earlier upload of the same manifest gives it. Files that may have changed without
/// a trace in the manifest are read.
fn known_hash(manifest: &Arc<Manifest>, key: &str) -> Result<Option<String>, Failure> {
    let Some(hint) = cache::load(key) else {
        return Ok(None);
    };
    if hint.is_certain(manifest) {
        return Ok(Some(hint.sha256));
    }
    hash_of(manifest).map(Some)
}

/// Hash of the content, which is read for it.
fn hash_of(manifest: &Arc<Manifest>) -> Result<String, Failure> {
    let mut reader = ContentReader::open(manifest, 0);
    io::copy(&mut reader, &mut io::sink()).map_err(read_failure)?;
    reader.finish().map_err(read_failure)
}

/// Failure to read what is to be uploaded.
fn read_failure(error: io::Error) -> Failure {
    Failure::usage(error.to_string())
}
