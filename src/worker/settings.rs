//! Settings of a worker, as the operator gives them.

use super::egress::EgressLimits;
use crate::api::image::ImageRef;
use std::{path::PathBuf, time::Duration};

/// Default of [`Settings::warm_memory`].
pub const DEFAULT_WARM_MEMORY: u64 = 512 << 20;
/// Memory that a warm sandbox takes at most: its shim, conmon and init.
const WARM_SANDBOX_BYTES: u64 = 8 << 20;
/// Default of [`Settings::reserve_memory`].
pub const DEFAULT_RESERVE_MEMORY: u64 = 512 << 20;

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of jobs at the same time.
    pub max_concurrency: usize,
    /// Patterns of images that may run; empty allows all.
    pub allowed_images: Vec<String>,
    /// Images to pull at the start, and to keep.
    pub prefetch_images: Vec<ImageRef>,
    /// Name or path of podman.
    pub engine: PathBuf,
    /// OCI runtime; podman's choice when `None`.
    pub engine_runtime: Option<String>,
    /// Time limit of a job that names none; the contract's when `None`.
    pub default_timeout: Option<Duration>,
    /// Longest time limit of a job; the contract's when `None`.
    pub max_timeout: Option<Duration>,
    /// Longest body of a request; the contract's when `None`.
    pub max_request_bytes: Option<usize>,
    /// Most sandboxes that are started before there are jobs for them; twice the number of slots when `None`.
    pub warm: Option<usize>,
    /// Bytes of memory that those may take together.
    pub warm_memory: u64,
    /// Bytes of the machine's memory that stay available; 0: no such guard.
    pub reserve_memory: u64,
    /// Limits on the network of jobs.
    pub egress: EgressLimits,
    /// Where jobs are stored, and for how long.
    pub storage: StorageSettings,
}

impl Settings {
    /// Most warm sandboxes.
    pub(super) fn most_warm(&self) -> usize {
        let most = self.warm.unwrap_or(self.max_concurrency.saturating_mul(2));
        let room = self.warm_memory / WARM_SANDBOX_BYTES;
        most.min(usize::try_from(room).unwrap_or(usize::MAX))
    }
}

/// Where jobs are stored, and for how long.
#[derive(Clone, Debug)]
pub struct StorageSettings {
    /// Directory of the jobs' directories; in the data directory when `None`.
    pub jobs_dir: Option<PathBuf>,
    /// Bytes that stay free on the filesystems of jobs, images and state, and the same share of their inodes. Below
    /// that no job is accepted.
    pub min_free: u64,
    /// Most bytes that a job may have on disk; `None`: no limit.
    pub workspace_limit: Option<u64>,
    /// Bytes of each job's log that are kept.
    pub log_bytes: u64,
    /// Most bytes of contents that are kept for later jobs.
    pub content_cache: u64,
    /// Most bytes of snapshots of sandboxes.
    pub snapshot_quota: u64,
    /// Most bytes of artifacts of a job.
    pub artifact_limit: u64,
    /// Time for which a result is kept that is not fetched.
    pub retain: Duration,
    /// Time for which an image is kept that this node pulled and no job uses; `None` keeps it for ever.
    pub image_gc: Option<Duration>,
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            jobs_dir: None,
            min_free: 512 << 20,
            workspace_limit: None,
            log_bytes: 64 << 20,
            content_cache: 10 << 30,
            snapshot_quota: 20 << 30,
            artifact_limit: 2 << 30,
            retain: Duration::from_hours(30 * 24),
            image_gc: Some(Duration::from_hours(30 * 24)),
        }
    }
}
