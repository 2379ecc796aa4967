//! Rows and results as domain types: everything that a caller of the store sees.
//!
//! No type here knows a database. Where a row holds a document, such as the result of a job or the
//! configuration of a node, the field is the parsed type and not its text.

mod api_keys;
mod artifacts;
mod jobs;
mod join_tokens;
mod nodes;
mod placement;
mod queue;
mod sandboxes;
mod secrets;
mod tasks;
mod users;

pub use api_keys::{
    API_KEY_USE_INTERVAL, ApiKeyFilter, InferenceUser, NewApiKey, UsageFilter, UsageRecord,
    ValidApiKey,
};
pub use artifacts::{ArtifactFilter, Evicted, NewArtifact, RoomRequest, StoreUse, UnfinishedBytes};
pub use jobs::{
    CancelOutcome, FinishedJob, JobCounts, JobOutlook, JobOwnership, Refusal, Refusals, RefusedJob,
    RunningJob,
};
pub use join_tokens::{JoinRefusal, JoinTokenState, NewJoinToken};
pub use nodes::{AckOutcome, ForgetOutcome, Node, RegisterOutcome, ServedConfig, StoredConfig};
pub use placement::{Placement, Requirements};
pub use queue::{
    JobDetails, Lane, LaneChanges, LaneCursor, LaneHeads, LaneRead, MAX_BACKOFF,
    MAX_LANES_PER_USER, QueueStatus, QueuedJob,
};
pub use sandboxes::{
    CreateSandboxOutcome, SandboxEnd, SandboxFilter, SandboxLimits, SandboxPage, SandboxRecord,
    SnapshotWaiter, StoredSandbox,
};
pub use secrets::{Resealed, SealedSecret, SecretSealing};
pub use tasks::{
    CreateOutcome, DeleteOutcome, ExpiredBatch, IdempotencyKey, MAX_OFFSET, QueueLimit,
    QueueLimits, Retention, TaskFilter, TaskMatch, TaskPage, TaskRequirements,
};
pub use users::{
    AuditFilter, Authority, BackupSummary, CredentialId, NewUser, PasswordProof, RefreshOutcome,
    UserChange, UserChangeOutcome, UserRecord,
};
