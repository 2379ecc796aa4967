//! The Worker API (contract, section 4): handlers between HTTP and the ledger.
//!
//! Handlers check the token, parse, and call the [ledger](super::ledger) or the [context](super::context). They
//! touch no disk themselves, and hold no lock while they wait: while a disk hangs, only the calls about the jobs
//! that are being written or read wait for it.

use super::{
    api_files,
    api_logs::{self, event_query, stream},
    api_state,
    context::WorkerContext,
    image_load,
    inference::{self, ModelServer},
    job::{self, JobStart},
    ledger::{Admission, Job, Ledger, Requester, Reservation},
    models,
    sessions::{self, Terminals},
    snapshots, stdin,
};
use crate::{
    api::{
        INSTANCE_HEADER, OrchestratorId,
        error::ApiError,
        image::ImageRef,
        is_valid_instance_id,
        jobs::{JobList, RunJob, SandboxSpec, stdin::MAX_PIECE_BYTES},
        problem::{Problem, ProblemKind},
        secrets::SecretValues,
    },
    background::BackgroundTasks,
    http::{
        budget::Account,
        request::Request,
        response::{self, Reply},
        router::Router,
    },
    instances::{InstanceStatus, Instances},
    spool::Piece,
};
use http::{Method, StatusCode};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Reason of a refusal while two processes call as one orchestrator.
const DUPLICATE_ORCHESTRATOR: &str = "two orchestrators run with the same data directory; stop one of them; this node accepts no jobs, and forgets none, \
    until only one has called for 30 s";
/// Delay after which a call may be sent again that was refused because of two orchestrators.
const RETRY_AFTER_SECONDS: u64 = 10;

/// State of the handlers.
pub(super) struct Api {
    pub(super) ledger: Arc<Ledger>,
    pub(super) ctx: Arc<WorkerContext>,
    /// Jobs that run or are being accepted.
    pub(super) job_tasks: BackgroundTasks,
    pub(super) model_server: ModelServer,
    /// Terminals of execs.
    pub(super) terminals: Terminals,
    /// Processes that call as orchestrators.
    instances: Instances<OrchestratorId>,
    /// Set at shutdown: new jobs are refused.
    is_closing: AtomicBool,
}

pub(super) fn router(api: Arc<Api>) -> Router<Api> {
    let requests = api.ctx.metrics.requests();
    snapshots::routes(sessions::routes(Router::new()))
        .route(Method::POST, "/v1/worker/jobs:run", run)
        .route(Method::GET, "/v1/worker/jobs", list)
        .route(Method::GET, "/v1/worker/jobs/{id}", get)
        .route(Method::GET, "/v1/worker/jobs/{id}/log", api_logs::get)
        .route(Method::DELETE, "/v1/worker/jobs/{id}", forget)
        .route(Method::POST, "/v1/worker/jobs/{id}:cancel", cancel)
        .route(
            Method::GET,
            "/v1/worker/jobs/{id}/artifacts/{n}",
            api_files::get_artifact,
        )
        .route(
            Method::GET,
            "/v1/worker/contents/{sha256}",
            api_files::get_content,
        )
        .route(
            Method::PUT,
            "/v1/worker/contents/{sha256}",
            api_files::put_content,
        )
        .route(Method::POST, "/v1/worker/jobs/{id}/stdin", receive_stdin)
        .route(Method::POST, "/v1/worker/images:load", image_load::load)
        .route(
            Method::GET,
            "/v1/worker/inference/{*path}",
            inference::proxy,
        )
        .route(
            Method::POST,
            "/v1/worker/inference/{*path}",
            inference::proxy,
        )
        .route(Method::GET, "/v1/worker/models", models::list)
        .route(Method::POST, "/v1/worker/models:pull", models::pull)
        .route(Method::DELETE, "/v1/worker/models/{*model}", models::delete)
        .route(Method::GET, "/healthz", async |_, _| {
            Ok(response::text(StatusCode::OK, "ok"))
        })
        .route(Method::GET, "/readyz", api_state::ready)
        .route(Method::GET, "/metrics", api_state::metrics)
        .build(api, requests)
}

impl Api {
    pub(super) fn new(ledger: Arc<Ledger>, ctx: Arc<WorkerContext>) -> Self {
        Self {
            ledger,
            job_tasks: BackgroundTasks::default(),
            model_server: ctx.model_server.clone(),
            ctx,
            terminals: Terminals::default(),
            instances: Instances::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Refuses new jobs from now on.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
        self.terminals.close();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::SeqCst)
    }

    /// Runs a job in the background.
    pub(super) fn start(&self, job: &Arc<Job>, start: JobStart) {
        let (ctx, job) = (Arc::clone(&self.ctx), Arc::clone(job));
        self.job_tasks.spawn("job", job::run(ctx, job, start));
    }

    /// The job of a request, which is accepted and started where it is new.
    async fn find_or_accept(
        self: &Arc<Self>,
        owner: Option<OrchestratorId>,
        wanted: RunJob,
        image: &ImageRef,
    ) -> Result<Arc<Job>, Problem> {
        let admission = self.ledger.admit(owner.clone(), &wanted, image).await?;
        match admission {
            Admission::Known(job) => Ok(job),
            Admission::New(reservation) => {
                let parts = (wanted.sandbox, wanted.secrets);
                self.accept(owner, reservation, parts).await
            }
        }
    }

    /// Accepts a job and starts it. Goes on when the caller leaves: half an acceptance must not stay on disk.
    async fn accept(
        self: &Arc<Self>,
        owner: Option<OrchestratorId>,
        reservation: Reservation,
        parts: (SandboxSpec, SecretValues),
    ) -> Result<Arc<Job>, Problem> {
        let api = Arc::clone(self);
        let accepted = async move {
            api.write_and_start(owner.as_ref(), reservation, parts)
                .await
        };
        let accepted = self.job_tasks.run_to_end("accept_job", accepted);
        accepted.await.map_err(|_| Problem::internal())?
    }

    async fn write_and_start(
        &self,
        owner: Option<&OrchestratorId>,
        reservation: Reservation,
        (spec, secrets): (SandboxSpec, SecretValues),
    ) -> Result<Arc<Job>, Problem> {
        let mut ready = self.ensure_sole_orchestrator(owner);
        if ready.is_ok() {
            ready = self.ctx.ensure_ready().await;
        }
        let pinned = match ready {
            Ok(()) => self.ctx.contents.pin_all(&spec).await,
            Err(problem) => Err(problem),
        };
        let pins = match pinned {
            Ok(pins) => pins,
            Err(problem) => {
                reservation.reject(&problem);
                return Err(problem);
            }
        };
        let (job, spec) = reservation.commit(spec).await?;
        self.start(&job, JobStart::New(spec.into(), pins, secrets));
        if !job.accepted.gpus.is_empty() {
            self.ctx.changed.send_replace(());
        }
        Ok(job)
    }

    /// Checks the token of a request that may take as long as a job. Returns the orchestrator that it belongs to.
    pub(super) fn authorize_long(
        &self,
        request: &Request,
    ) -> Result<Option<OrchestratorId>, Problem> {
        let owner = self.authorize(request)?;
        request.authorize(Account::SoleClient)?;
        Ok(owner)
    }

    /// Checks the token of a short request. Returns the orchestrator that it belongs to.
    pub(super) fn authorize(&self, request: &Request) -> Result<Option<OrchestratorId>, Problem> {
        let owner = {
            let access = self.ctx.access.borrow();
            access
                .is_authorized(request)
                .then(|| access.orchestrator.clone())
        };
        if let Some(owner) = owner {
            request.authorize_sole_client();
            if let Some(owner) = &owner {
                self.record_instance(owner, request);
            }
            return Ok(owner);
        }
        Err(Problem::unauthorized(
            "this is not the token that the orchestrator gave this node; restart the node, which then gets the current one",
        ))
    }

    /// Records the process of an orchestrator that calls.
    fn record_instance(&self, owner: &OrchestratorId, request: &Request) {
        let instance = request.header(INSTANCE_HEADER);
        let Some(instance) = instance.filter(|instance| is_valid_instance_id(instance)) else {
            return;
        };
        let caller = self
            .instances
            .record_call(owner.clone(), instance, Instant::now());
        if caller == (InstanceStatus::Duplicate { is_new: true }) {
            tracing::warn!(address = %request.connection.client, "{DUPLICATE_ORCHESTRATOR}");
        }
    }

    /// Refuses a change while two processes call as one orchestrator: neither knows the changes of the other.
    pub(super) fn ensure_sole_orchestrator(
        &self,
        owner: Option<&OrchestratorId>,
    ) -> Result<(), Problem> {
        let is_duplicate =
            owner.is_some_and(|owner| self.instances.has_duplicate(owner, Instant::now()));
        if is_duplicate {
            return Err(
                Problem::new(ProblemKind::Unavailable, DUPLICATE_ORCHESTRATOR)
                    .retry_after(RETRY_AFTER_SECONDS),
            );
        }
        Ok(())
    }

    /// The job that a request names, where it belongs to the orchestrator that asks.
    pub(super) async fn job(&self, request: &Request) -> Result<Arc<Job>, Problem> {
        let owner = self.authorize(request)?;
        let id = request.param("id", "job")?;
        self.ledger.get(owner.as_ref(), id, attempt(request)?).await
    }
}

async fn run(api: Arc<Api>, mut request: Request) -> Reply {
    let owner = api.authorize_long(&request)?;
    let query = event_query(&request)?;
    request.limit_body(api.ctx.access.borrow().policy.max_request_bytes);
    let wanted: RunJob = request.payload().await?;
    let job = admit(&api, owner, wanted).await?;
    if wants_stream(&request) {
        return stream(job, query);
    }
    // Frees its memory: the job may run for hours.
    drop(request);
    match job.wait_result().await {
        Some(last) => response::ok(&last.result),
        None => Err(unreadable_result().into()),
    }
}

/// Admits a job, which is started where it is new.
pub(super) async fn admit(
    api: &Arc<Api>,
    owner: Option<OrchestratorId>,
    wanted: RunJob,
) -> Result<Arc<Job>, ApiError> {
    let image = wanted.check()?;
    api.ctx.models.check(&wanted.sandbox)?;
    if api.is_closing() {
        return Err(Problem::new(
            ProblemKind::Unavailable,
            "this worker is shutting down; send the job to another node",
        )
        .into());
    }
    // A prompt needs no image.
    if wanted.sandbox.prompt.is_none()
        && let Err(full) = api.ledger.check_pull_limit(&wanted)
        && !api.ctx.images.is_present(&image).await
    {
        return Err(full.into());
    }
    Ok(api.find_or_accept(owner, wanted, &image).await?)
}

async fn get(api: Arc<Api>, request: Request) -> Reply {
    let job = api.job(&request).await?;
    let query = event_query(&request)?;
    if wants_stream(&request) {
        request.authorize(Account::SoleClient)?;
        if query.output && query.follow {
            // A reader of output can come back; the stream that waits for the end has none.
            request.mark_preemptible();
        }
        return stream(job, query);
    }
    if !job.has_ended() {
        return response::ok(&job.state());
    }
    match job.read_result().await {
        Some(last) => response::ok(&last.result),
        None => Err(unreadable_result().into()),
    }
}

async fn list(api: Arc<Api>, request: Request) -> Reply {
    let owner = api.authorize(&request)?;
    let jobs = api.ledger.states(owner.as_ref());
    response::ok(&JobList { jobs })
}

async fn cancel(api: Arc<Api>, request: Request) -> Reply {
    let job = api.job(&request).await?;
    let is_forced = request.query_as("force", "true or false")?.unwrap_or(false);
    job.cancel(Duration::from_secs(if is_forced { 0 } else { u64::MAX }));
    response::ok(&job.state())
}

async fn receive_stdin(api: Arc<Api>, mut request: Request) -> Reply {
    let job = api.job(&request).await?;
    request.authorize(Account::SoleClient)?;
    let offset = request.query_as("offset", "the number of bytes before this piece")?;
    let is_last = request.query_as("eof", "true or false")?.unwrap_or(false);
    request.limit_body(MAX_PIECE_BYTES);
    let piece = Piece {
        offset: offset.unwrap_or(0),
        bytes: request.bytes().await?,
        is_last,
    };
    response::ok(&stdin::receive(&job, piece).await?)
}

async fn forget(api: Arc<Api>, request: Request) -> Reply {
    let owner = api.authorize(&request)?;
    api.ensure_sole_orchestrator(owner.as_ref())?;
    let id = request.param("id", "job")?;
    let attempt = attempt(&request)?;
    // Goes on when the caller leaves: half a removal must not stay on disk.
    let ledger = Arc::clone(&api.ledger);
    let forgotten = async move {
        let requester = Requester::Orchestrator(owner.as_ref());
        ledger.forget(requester, id, attempt).await
    };
    let forgotten = api.job_tasks.run_to_end("forget_job", forgotten);
    forgotten.await.map_err(ApiError::internal)??;
    response::no_content()
}

/// Attempt that a call is about; `None` for the current one.
pub(super) fn attempt(request: &Request) -> Result<Option<u32>, Problem> {
    request.query_as("attempt", "the number of an attempt")
}

pub(super) fn wants_stream(request: &Request) -> bool {
    request.accepts("application/x-ndjson")
}

fn unreadable_result() -> Problem {
    Problem::new(
        ProblemKind::Internal,
        "the job's result can't be read; see the node's log for the reason",
    )
}
