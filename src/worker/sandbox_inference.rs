//! Calls of models from sandboxes that may use them: they go to the orchestrator, which chooses a node for them as for
//! any other, this one among them, and records the use with the job's task.
//!
//! Each sandbox has an HTTP server of its own, on the [listeners](super::sandbox_listeners) that its init opened. So a
//! call needs no key: the listener that it came from says which job made it. The node's token never enters a sandbox.

use super::{
    context::WorkerContext,
    inference::{chunks, too_large},
    ledger::Job,
};
use crate::{
    api::{
        JOB_HEADER, JobId,
        jobs::SandboxSpec,
        nodes::ModelDetails,
        problem::{Problem, ProblemKind},
    },
    background,
    http::{
        client::Client,
        private::{PrivateListener, serve_private},
        query::encode,
        request::Request,
        response::{self, Reply},
        router::Router,
        server::Shutdown,
    },
    inference::{Endpoint, Family, MAX_REQUEST_BYTES, error::renderer, relay},
    sandbox_init::listeners::{INFERENCE_PORT, INFERENCE_SOCKET},
};
use http::{HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use std::{ffi::OsString, sync::Arc};
use tokio::sync::{Semaphore, watch};
use zeroize::Zeroizing;

/// Connections of one sandbox at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
/// Delay after which a call may be sent again that found no orchestrator.
const RETRY_AFTER_SECONDS: u64 = 5;
/// Path of one model. A name may hold slashes.
const MODEL_PATH: &str = "/v1/models/{*id}";
/// Begin of the paths of Ollama's API.
const OLLAMA_PREFIX: &str = "/api/";
/// Text for calls of Ollama's API that change a model server.
const REFUSED: &str = "this call of Ollama's API is not served in a sandbox: an admin pulls and removes models, with cynode models";

/// Model API of the orchestrator for this node.
pub struct OrchestratorModels {
    /// Client that trusts the orchestrator.
    pub client: Client,
    /// URL before the path of a call.
    pub url: String,
    /// Bearer token of the node.
    pub token: Zeroizing<String>,
}

/// Way from sandboxes to models; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct ModelGateway {
    access: Arc<Mutex<Option<Arc<OrchestratorModels>>>>,
}

impl ModelGateway {
    /// Sets the model API that calls go to; `None` where the orchestrator has none.
    pub(super) fn set(&self, access: Option<OrchestratorModels>) {
        *self.access.lock() = access.map(Arc::new);
    }

    /// Refuses a job that wants to use models while there is no way to them.
    pub(super) fn check(&self, sandbox: &SandboxSpec) -> Result<(), Problem> {
        if sandbox.use_inference != Some(true) || self.access.lock().is_some() {
            return Ok(());
        }
        let detail = "is not available: this worker has no way to models; leave it out";
        let problem = Problem::new(ProblemKind::InferenceNotAvailable, detail);
        Err(problem.at("/sandbox/use_inference"))
    }
}

/// Model API inside of one sandbox.
struct SandboxApi {
    gateway: ModelGateway,
    job: JobId,
}

/// Starts to serve the model API of a sandbox; ends, with all calls, when the sender is dropped.
pub(super) fn serve(
    ctx: &WorkerContext,
    job: &Job,
    listeners: Vec<PrivateListener>,
) -> watch::Sender<bool> {
    let (stop, stopped) = watch::channel(false);
    let api = Arc::new(SandboxApi {
        gateway: ctx.models.clone(),
        job: job.accepted.job_id,
    });
    let router = router(api, ctx);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for listener in listeners {
        serve_listener(listener, router.clone(), &room, stopped.clone());
    }
    stop
}

fn serve_listener(
    listener: PrivateListener,
    router: Router<SandboxApi>,
    room: &Arc<Semaphore>,
    stopped: Shutdown,
) {
    let served = serve_private(listener, router, Arc::clone(room), stopped);
    background::spawn("sandbox_inference", served);
}

fn router(api: Arc<SandboxApi>, ctx: &WorkerContext) -> Router<SandboxApi> {
    let mut builder = Router::new();
    for endpoint in Endpoint::ALL.iter().copied() {
        let (method, path) = (endpoint.method(), endpoint.path());
        builder = builder
            .route(method, path, move |api, request| {
                call(api, request, endpoint)
            })
            .with_errors(path, renderer(endpoint.family()));
    }
    builder
        .route(Method::GET, MODEL_PATH, model)
        .with_errors(MODEL_PATH, renderer(Family::OpenAi))
        .with_refused(OLLAMA_PREFIX, REFUSED, renderer(Family::Ollama))
        // Ollama's own client asks this before it calls.
        .route(Method::GET, "/", async |_, _| {
            Ok(response::text(StatusCode::OK, "models are served here"))
        })
        .build(api, ctx.metrics.sandbox_requests())
}

async fn call(api: Arc<SandboxApi>, request: Request, endpoint: Endpoint) -> Reply {
    forward(&api, request, endpoint, endpoint.path()).await
}

async fn model(api: Arc<SandboxApi>, request: Request) -> Reply {
    let name: String = request.param("id", "model")?;
    if !is_one_resource(&name) {
        let detail = "no node has a model with this name; GET /v1/models lists those there are";
        return Err(Problem::new(ProblemKind::ModelNotFound, detail)
            .about("model")
            .into());
    }
    let path = format!("/v1/models/{}", encode(&name));
    forward(&api, request, Endpoint::Models, &path).await
}

/// Whether a name stays below the path that it is put into, whatever a proxy on the way makes of it: the call carries
/// the node's token.
fn is_one_resource(name: &str) -> bool {
    let mut segments = name.split(['/', '\\']);
    ModelDetails::is_valid_name(name) && segments.all(|segment| !matches!(segment, "" | "." | ".."))
}

/// Passes a call on to the orchestrator, which answers in the shape of the API that the call belongs to.
async fn forward(api: &SandboxApi, mut request: Request, endpoint: Endpoint, path: &str) -> Reply {
    let access = api.gateway.access.lock().clone();
    let access = access.ok_or_else(|| unavailable("the orchestrator serves no models to jobs"))?;
    let body = request.chunks();
    let length = body.announced_size();
    if length.is_some_and(|length| length > MAX_REQUEST_BYTES as u64) {
        return Err(too_large().into());
    }
    let mut headers = relay::request_headers(request.headers());
    let internal = |error| Problem::internal().caused_by(error);
    let bearer = format!("Bearer {}", access.token.as_str());
    let bearer = HeaderValue::try_from(bearer).map_err(internal)?;
    headers.insert(header::AUTHORIZATION, bearer);
    let job = HeaderValue::try_from(api.job.to_string()).map_err(internal)?;
    headers.insert(JOB_HEADER, job);
    let url = format!("{}{path}", access.url);
    let (body, fault_of_body) = chunks(body);
    let sent = relay::request(endpoint, &url, headers, length, body);
    let sent = sent.map_err(|error| Problem::internal().caused_by(error))?;
    let answer = access.client.forward(sent).await.map_err(|error| {
        if let Err(problem) = fault_of_body.check() {
            return problem;
        }
        // Not a warning: a job could repeat it.
        tracing::debug!(%error, "call of a model not passed on");
        unavailable("the orchestrator can't be reached, which knows the nodes with models")
    })?;
    if answer.status() == StatusCode::UNAUTHORIZED {
        return Err(unavailable("this node is being registered again").into());
    }
    Ok(relay::response(answer))
}

fn unavailable(reason: &str) -> Problem {
    let detail = format!("{reason}; try again in a moment");
    Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER_SECONDS)
}

/// Variables by which clients of models find the listeners, and a key for those that want one.
pub(super) fn variables() -> [(OsString, OsString); 5] {
    let base = format!("http://localhost:{}", INFERENCE_PORT);
    let openai = format!("{base}/v1");
    let socket = INFERENCE_SOCKET.replace('/', "%2F");
    [
        ("OLLAMA_HOST", base.clone()),
        ("OLLAMA_BASE_URL", base),
        ("OPENAI_BASE_URL", openai),
        ("OPENAI_API_KEY", "cynode".to_owned()),
        ("INFERENCE_PROXY_URL", format!("http+unix://{socket}")),
    ]
    .map(|(name, value)| (name.into(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_with_other_paths_are_refused() {
        for name in ["qwen3:0.6b", "hf.co/owner/name:Q4_K_M", "a..b", "..."] {
            assert!(is_one_resource(name), "{name}");
        }
        for name in [
            "", "/", ".", "..", "a/..", "../nodes", "a//b", "a\\..\\b", "a\n",
        ] {
            assert!(!is_one_resource(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn allowed_names_stay_below_their_path(name in "[a./\\\\%]{0,12}") {
            let path = std::path::Path::new(&name);
            let mut parts = path.components();
            let is_below = parts.all(|part| matches!(part, std::path::Component::Normal(_)));
            prop_assert!(!is_one_resource(&name) || is_below);
        }
    }
}
