//! Control plane: the Node API (contract, section 3) with registration, report, configuration and
//! acknowledgement.
//!
//! Handlers authenticate, parse and check, call a use case ([`node_registration`], [`node_config`]) and
//! render its outcome. Calls of models for jobs are in [`inference`], the tunnel of a node in [`tunnel`].

mod inference;
mod tunnel;

use super::{
    AppState, drill, health,
    node_config::{self, REPORT_PATH},
    node_registration::{self, Registered, authenticate, check_instance},
};
use crate::{
    api::{
        PAYLOAD_VERSION, UNREACHABLE_HEADER,
        audit::{AuditAction, AuditEvent},
        error::ApiError,
        nodes::{
            self, Bootstrap, BootstrapAuth, BootstrapEndpoints, BootstrapOrchestrator,
            CapabilityReport, ConfigAck, Register,
        },
        problem::{Problem, ProblemKind},
        time::Time,
    },
    http::{
        budget::Account,
        request::Request,
        response::{self, Reply},
        router::{PathHint, Router},
    },
    identity::NodeCredential,
    store::Node,
};
use http::{HeaderValue, Method, StatusCode};
use std::sync::Arc;
use uuid::Uuid;

/// Largest report, acknowledgement, and registration that shows the pre-shared key in its head. A report at
/// all its limits is smaller.
const MAX_REPORT_BYTES: usize = 1024 * 1024;
/// Largest registration that shows the key in its body, which anybody may send.
const MAX_UNAUTHENTICATED_BYTES: usize = 256 * 1024;
const REGISTER_PATH: &str = "/v1/nodes/register";
/// Path of reports in other implementations of the contract.
const CAPABILITY_PATH: &str = "/v1/nodes/capability";
const CONFIG_PATH: &str = "/v1/nodes/config";
/// Begin of the paths of calls of models.
const INFERENCE_PATH: &str = "/v1/nodes/inference";

/// Begins of the paths with which clients of users begin.
const USER_PATHS: [&str; 4] = ["/v1/auth/", "/v1/users", "/v1/tasks", "/v1/sandboxes"];
/// Answer to them.
const USER_ADVICE: &str = "there is no such path: this port is for nodes; users call the gateway, at port 12080 \
     unless its operator chose another (cynode login --gateway-url URL)";

/// All routes of the control plane.
pub(super) fn router(state: Arc<AppState>) -> Router<AppState> {
    let requests = state.metrics.requests("control");
    let builder = Router::new()
        .route(Method::POST, REGISTER_PATH, register)
        .route(Method::POST, REPORT_PATH, report)
        .route(Method::POST, CAPABILITY_PATH, report)
        .route(Method::GET, CONFIG_PATH, config)
        .route(Method::POST, CONFIG_PATH, acknowledge)
        .with_hints(user_hint);
    let mut builder = tunnel::routes(inference::routes(health::routes(builder)));
    if state.settings.drill {
        builder = builder.with_refused_calls(drill::is_refused_to_nodes, drill::problem);
    }
    builder.build(state, requests)
}

/// Hint for a client of users that has the port of nodes.
fn user_hint(path: &str, _base_url: &str) -> Option<PathHint> {
    let is_for_users = USER_PATHS.iter().any(|begin| path.starts_with(begin));
    is_for_users.then(|| PathHint {
        detail: USER_ADVICE.to_owned(),
        render: response::problem,
    })
}

async fn register(state: Arc<AppState>, mut request: Request) -> Reply {
    let origin = request.origin();
    let event = AuditEvent::new(AuditAction::NodeRegister, Time::now(), Some(&origin));
    let (mut body, credential) = authenticate_registration(&state, &mut request, &event).await?;
    body.check()?;
    state
        .check_worker_address(&request, &mut body.capability, "/capability")
        .await?;
    let registered = node_registration::register(&state, body, credential, &origin, event).await?;
    let status = if registered.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let base_url = base_url(&state, &request);
    response::json(status, &bootstrap(&state, registered, base_url))
}

fn bootstrap(state: &AppState, registered: Registered, base_url: String) -> Bootstrap {
    Bootstrap {
        version: PAYLOAD_VERSION,
        issued_at: Some(Time::now()),
        orchestrator_id: Some(state.store.orchestrator_id().clone()),
        orchestrator: BootstrapOrchestrator {
            endpoints: BootstrapEndpoints {
                worker_registration_url: Some(format!("{base_url}{REGISTER_PATH}")),
                node_report_url: format!("{base_url}{REPORT_PATH}"),
                node_config_url: format!("{base_url}{CONFIG_PATH}"),
                inference_url: Some(format!("{base_url}{INFERENCE_PATH}")),
                node_tunnel_url: Some(format!("{base_url}{}", tunnel::PATH)),
            },
            base_url,
        },
        auth: BootstrapAuth {
            node_jwt: registered.token,
            expires_at: Some(registered.expires_at),
        },
    }
}

/// Registration whose sender has a pre-shared key, or the secret of a join token: in the head, or, as the published
/// contract has it, in the body, which is then limited more. Without a valid one the answer says nothing of slugs.
async fn authenticate_registration(
    state: &AppState,
    request: &mut Request,
    event: &AuditEvent,
) -> Result<(Register, NodeCredential), ApiError> {
    let (identity, address) = (&state.identity, request.connection.client);
    let shown = match request.bearer() {
        Some(secret) => Some(identity.verify_credential(secret, address).await?),
        None => None,
    };
    let wrong = match shown {
        Some(Ok(credential)) => {
            // All holders of the key share one budget of memory.
            request.authorize(Account::Authenticated(Uuid::nil()))?;
            request.limit_body(MAX_REPORT_BYTES);
            return Ok((request.payload().await?, credential));
        }
        // It may be another token of a node that shows the key in its body.
        Some(Err(wrong)) => Some(wrong),
        None => None,
    };
    request.limit_body(MAX_UNAUTHENTICATED_BYTES);
    let body: Result<Register, Problem> = request.payload().await;
    let checked = match (body, wrong) {
        (Ok(body), Some(wrong)) => identity
            .verify_other_credential(wrong, &body.psk, address)
            .await
            .map(|credential| (body, credential)),
        (Ok(body), None) => identity
            .check_credential(&body.psk, address)
            .await
            .map(|credential| (body, credential)),
        (Err(problem), Some(wrong)) if problem.kind == ProblemKind::PayloadTooLarge => {
            Err(wrong.refuse(address).into())
        }
        (Err(mut problem), _) => {
            if problem.kind == ProblemKind::PayloadTooLarge {
                problem.detail +=
                    ", or show the pre-shared key in the head, as Authorization: Bearer KEY";
            }
            Err(problem.into())
        }
    };
    match &checked {
        Ok(_) => request.authorize_connection(),
        Err(error) if error.kind() == ProblemKind::Unauthorized => {
            let event = event.clone().refused(error.problem());
            identity.record_audit(event).await?;
        }
        Err(_) => {}
    }
    checked
}

async fn report(state: Arc<AppState>, mut request: Request) -> Reply {
    let node = authenticate_request(&state, &mut request).await?;
    let mut report: CapabilityReport = request.payload().await?;
    report.check("")?;
    check_own_slug("/node/node_slug", &report.node.node_slug, &node)?;
    let (origin, instance) = (request.origin(), report.node.instance_id.as_deref());
    check_instance(&state, node.id, &node.slug, instance, &origin).await?;
    state
        .check_worker_address(&request, &mut report, "")
        .await?;
    node_registration::report(&state, &node, report, &origin).await?;
    let mut response = response::no_content()?;
    // The node would see it nowhere else: its own calls arrive.
    if let Some(reason) = state.nodes.reachability.failure(node.id)
        && let Ok(reason) = HeaderValue::try_from(header_text(&reason.for_admins()))
    {
        response.headers_mut().insert(UNREACHABLE_HEADER, reason);
    }
    Ok(response)
}

/// Text as a header can have it.
fn header_text(text: &str) -> String {
    let is_printable = |c: char| c == ' ' || c.is_ascii_graphic();
    text.replace(|c: char| !is_printable(c), "?")
}

async fn config(state: Arc<AppState>, mut request: Request) -> Reply {
    let node = authenticate_request(&state, &mut request).await?;
    let base_url = base_url(&state, &request);
    response::ok(&node_config::serve(&state, &node, base_url).await?)
}

async fn acknowledge(state: Arc<AppState>, mut request: Request) -> Reply {
    let node = authenticate_request(&state, &mut request).await?;
    let ack: ConfigAck = request.payload().await?;
    ack.check()?;
    check_own_slug("/node_slug", &ack.node_slug, &node)?;
    node_config::acknowledge(&state, &node, ack).await?;
    response::no_content()
}

/// Node that sends the request. Its budget pays for the body.
async fn authenticate_request(state: &AppState, request: &mut Request) -> Result<Node, ApiError> {
    let node = authenticate(state, request.bearer()).await?;
    request.authorize(Account::Authenticated(node.id.into()))?;
    request.limit_body(MAX_REPORT_BYTES);
    Ok(node)
}

fn check_own_slug(pointer: &str, named: &str, node: &Node) -> Result<(), Problem> {
    if named == node.slug {
        return Ok(());
    }
    let detail = format!("is not {}, the slug of the node of this token", node.slug);
    Err(Problem::field(pointer, detail))
}

/// Base URL at which nodes reach this orchestrator: --public-url, or else the one that this node used.
fn base_url(state: &AppState, request: &Request) -> String {
    if let Some(url) = &state.settings.public_url {
        return url.trim_end_matches('/').to_owned();
    }
    // The host, or forwarded port, that the node used, if valid; only this node gets it back.
    let named = request.base_url();
    named
        .filter(|url| nodes::check_url("", url).is_ok())
        .unwrap_or_else(|| {
            let connection = request.connection;
            format!("{}://{}", connection.scheme(), connection.local)
        })
}
