//! Directories and files of a worker, opened at its start.
//!
//! ```text
//! <data dir>/worker.lock           one worker at a time
//! <data dir>/worker/               the worker's home
//!   init/                          copies of this binary, the init of sandboxes (see init_copy)
//!   jobs/                          spools, or in cynode-<node uuid>/ below --jobs-dir
//!   node-uuid                      label of this node's containers
//!   tombstones                     forgotten jobs
//!   contents/                      contents that jobs need or needed (see contents)
//!   egress-cache/                  downloads of jobs, for later ones (see egress/cache)
//!   loads/                         what podman unpacks of images that are pushed (see image_load)
//!   pulled-images.json             images that this node pulled
//!   snapshots/                     snapshots of sandboxes (see snapshots)
//! ```

use super::{
    Settings, StorageSettings,
    contents::ContentCache,
    init_copy::InitCopy,
    snapshots::Snapshots,
    tombstones::{TombstoneFile, Tombstones},
};
use crate::{
    data_dir::{DataDir, PathAnchors, RoleLock, SecretFile, check_owner, make_private_dir},
    engine::{Engine, EngineError, Program, probe},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

/// Directories and files of a worker.
pub(super) struct WorkerHome {
    /// Keeps out other processes, which would remove the sandboxes of our jobs.
    pub(super) lock: RoleLock,
    pub(super) path: PathBuf,
    pub(super) init: InitCopy,
    /// Label of the containers of this node.
    pub(super) node_uuid: String,
    pub(super) jobs_dir: PathBuf,
    pub(super) anchors: Arc<PathAnchors>,
    pub(super) tombstones: (TombstoneFile, Tombstones),
    pub(super) contents: ContentCache,
    /// Directories of loads of images.
    pub(super) loads_dir: PathBuf,
    /// Those that an earlier process has left.
    pub(super) left_loads: Vec<PathBuf>,
    pub(super) snapshots: Arc<Snapshots>,
    /// Directories of snapshots that an earlier process has not completed.
    pub(super) left_snapshots: Vec<PathBuf>,
}

impl WorkerHome {
    /// Finds a podman that works, whose state is here.
    pub(super) async fn probe_engine(&self, settings: &Settings) -> Result<Engine, EngineError> {
        let wanted = probe::ProbeRequest {
            program: Program::podman(&settings.engine, &self.path)?,
            runtime: settings.engine_runtime.clone(),
        };
        let probe_env = probe::ProbeEnv {
            init: self.init.path(),
            scratch: &self.path,
            node_uuid: Some(&self.node_uuid),
        };
        let mut engine = probe::probe(wanted, probe_env).await?;
        engine.enable_upper_detach(&self.node_uuid);
        Ok(engine)
    }

    /// Locks the data directory, and opens or makes what a worker has there.
    pub(super) async fn open(data_dir: &DataDir, storage: &StorageSettings) -> io::Result<Self> {
        let (data_dir, storage) = (data_dir.clone(), storage.clone());
        let opened = spawn_blocking(move || Self::open_blocking(&data_dir, &storage)).await;
        opened.map_err(io::Error::from).flatten()
    }

    fn open_blocking(data_dir: &DataDir, storage: &StorageSettings) -> io::Result<Self> {
        let lock = data_dir.lock("worker", &["node", "worker", "worker/init"])?;
        // OCI runtimes refuse a root whose path has a symbolic link.
        let path = fs::canonicalize(data_dir.subdir("worker")?)?;
        let init = InitCopy::install(&path.join("init"))?;
        let node_uuid = node_uuid(data_dir)?;
        let jobs_dir = open_jobs_dir(storage, &path, &node_uuid)?;
        let anchors = Arc::new(PathAnchors::open([lock.path(), &path, &jobs_dir])?);
        let tombstones = TombstoneFile::open(path.join("tombstones"), storage.retain)?;
        let contents = ContentCache::open(&path, storage.content_cache, storage.min_free)?;
        let loads_dir = path.join("loads");
        make_private_dir(&loads_dir)?;
        let left_loads = fs::read_dir(&loads_dir)?.map(|entry| entry.map(|entry| entry.path()));
        let left_loads = left_loads.collect::<io::Result<_>>()?;
        let snapshots_dir = path.join("snapshots");
        let (snapshots, left_snapshots) = Snapshots::open(snapshots_dir, storage.snapshot_quota)?;
        Ok(Self {
            lock,
            path,
            init,
            node_uuid,
            jobs_dir,
            anchors,
            tombstones,
            contents,
            loads_dir,
            left_loads,
            snapshots: Arc::new(snapshots),
            left_snapshots,
        })
    }
}

/// Label of the containers of this node, made at the first start.
fn node_uuid(data_dir: &DataDir) -> io::Result<String> {
    let file = SecretFile {
        name: "worker/node-uuid",
        validate: |text| {
            let parsed = uuid::Uuid::try_parse(text);
            parsed.map(drop).map_err(|_| "is not a UUID")
        },
        advice: "restore it from a backup; or delete it, and then remove by hand the containers that were left behind and their directories in cynode/ below podman's graph root",
    };
    let generate = || Zeroizing::new(uuid::Uuid::new_v4().to_string());
    let (uuid, _) = data_dir.secret(file, generate)?;
    Ok(uuid.to_string())
}

/// Opens the directory of all spools. Below the operator's --jobs-dir it is one per node, since others may use that
/// directory, too.
fn open_jobs_dir(storage: &StorageSettings, home: &Path, node_uuid: &str) -> io::Result<PathBuf> {
    let jobs_dir = match &storage.jobs_dir {
        Some(shared) => shared.join(format!("cynode-{node_uuid}")),
        None => home.join("jobs"),
    };
    // In a shared directory another user may have made it first.
    let checked = match &storage.jobs_dir {
        Some(_) => check_owner(&jobs_dir),
        None => Ok(()),
    };
    checked
        .and_then(|()| make_private_dir(&jobs_dir))
        .and_then(|()| fs::canonicalize(&jobs_dir))
        .map_err(|error| {
            let path = jobs_dir.display();
            let text = format!("can't store jobs in {path}: {error}; choose another --jobs-dir");
            io::Error::new(error.kind(), text)
        })
}
