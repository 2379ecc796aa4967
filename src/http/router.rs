//! From method and path to a handler.
//!
//! The router gives each request an id and a span, answers 404 and 405 by itself, turns an
//! [`ApiError`](crate::api::error::ApiError) into its response and a panic into a 500. It logs and
//! measures each request once: without its query, which may hold names, and with the cause of its failure.

use super::{
    body::ArrivingBody,
    metrics::{RequestMetrics, UNMATCHED_ROUTE},
    request::{Request, RequestContext},
    response::{self, Reply, Response},
    warnings::Warnings,
};
use crate::{
    api::problem::{Problem, ProblemKind},
    errors,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{Instrument as _, field::Empty};
use uuid::Uuid;

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

type Handler<S> = Arc<dyn Fn(Arc<S>, Request) -> BoxFuture<'static, Reply> + Send + Sync>;
type Methods<S> = Vec<(Method, Handler<S>)>;
type Params = HashMap<String, String>;
/// Form of the errors of a path: from a problem and the id of the request.
pub type ErrorRenderer = fn(&Problem, &str) -> Response;

/// Answer to a path that has no route: from the path and the base URL of the request, as far as they lead to one.
pub type PathHints = fn(&str, &str) -> Option<PathHint>;

/// Text for clients of an API that is not ours, which is served at another path.
pub struct PathHint {
    /// Problem, and what to do about it.
    pub detail: String,
    /// Form of the API's errors.
    pub render: ErrorRenderer,
}

/// A path with its `{name}` parameters, and what is there.
struct Route<S> {
    template: &'static str,
    methods: Methods<S>,
    /// Form of errors of an API that is not ours; nothing of ours is added to its answers.
    foreign: Option<ErrorRenderer>,
}

/// Route that was found for a request.
struct Found<S> {
    template: &'static str,
    foreign: Option<ErrorRenderer>,
    handler: Result<(Handler<S>, Params), Problem>,
}

/// Collects routes; see [`Router::new`].
pub struct RouterBuilder<S> {
    paths: BTreeMap<&'static str, Methods<S>>,
    foreign: BTreeMap<&'static str, ErrorRenderer>,
    refused: Option<Refused>,
    hints: Option<PathHints>,
    warns_below: Option<&'static str>,
}

/// Paths that are refused where they have no route.
#[derive(Clone, Copy)]
struct Refused {
    prefix: &'static str,
    detail: &'static str,
    render: ErrorRenderer,
}

/// Routes over a shared state `S`.
pub struct Router<S> {
    state: Arc<S>,
    requests: RequestMetrics,
    paths: Arc<matchit::Router<Route<S>>>,
    refused: Option<Refused>,
    hints: Option<PathHints>,
    warns_below: Option<&'static str>,
}

impl<S> Clone for Router<S> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            requests: self.requests.clone(),
            paths: Arc::clone(&self.paths),
            refused: self.refused,
            hints: self.hints,
            warns_below: self.warns_below,
        }
    }
}

impl<S: Send + Sync + 'static> Router<S> {
    /// Starts an empty router.
    #[allow(
        clippy::new_ret_no_self,
        reason = "a router without routes is of no use"
    )]
    pub fn new() -> RouterBuilder<S> {
        RouterBuilder {
            paths: BTreeMap::new(),
            foreign: BTreeMap::new(),
            refused: None,
            hints: None,
            warns_below: None,
        }
    }
}

impl<S: Send + Sync + 'static> RouterBuilder<S> {
    /// Adds a handler. `path` may hold `{name}` parameters.
    pub fn route<F, R>(mut self, method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Arc<S>, Request) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let handler: Handler<S> = Arc::new(move |state, request| Box::pin(handler(state, request)));
        self.paths.entry(path).or_default().push((method, handler));
        self
    }

    /// Has the errors of a path rendered for another API.
    pub fn with_errors(mut self, path: &'static str, render: ErrorRenderer) -> Self {
        self.foreign.insert(path, render);
        self
    }

    /// Has paths that begin with `prefix` and have no route answered 403 rather than 404.
    pub fn with_refused(
        mut self,
        prefix: &'static str,
        detail: &'static str,
        render: ErrorRenderer,
    ) -> Self {
        self.refused = Some(Refused {
            prefix,
            detail,
            render,
        });
        self
    }

    /// Has the calls for which `is_refused` holds, by method and path, answered with a problem and not by their handlers.
    pub fn with_refused_calls(
        mut self,
        is_refused: fn(&Method, &str) -> bool,
        problem: fn() -> Problem,
    ) -> Self {
        for (path, methods) in &mut self.paths {
            for (method, handler) in methods {
                if !is_refused(method, path) {
                    continue;
                }
                let refuse = move |_: Arc<S>, _: Request| -> BoxFuture<'static, Reply> {
                    let reply: Reply = Err(problem().into());
                    Box::pin(std::future::ready(reply))
                };
                *handler = Arc::new(refuse);
            }
        }
        self
    }

    /// Has paths that have no route answered 404 with a hint, where there is one for them.
    pub fn with_hints(mut self, hints: PathHints) -> Self {
        self.hints = Some(hints);
        self
    }

    /// Has answers of the paths that begin with `prefix` name what was ignored of their requests.
    pub fn with_warnings_below(self, prefix: &'static str) -> Self {
        Self {
            warns_below: Some(prefix),
            ..self
        }
    }

    /// Every method and path that has a handler.
    #[cfg(test)]
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&Method, &'static str)> {
        self.paths
            .iter()
            .flat_map(|(path, methods)| methods.iter().map(move |(method, _)| (method, *path)))
    }

    /// The finished router over a shared state, which records its answers in `requests`.
    ///
    /// # Panics
    /// When two paths exclude each other, which every start of the role would show.
    pub fn build(self, state: Arc<S>, requests: RequestMetrics) -> Router<S> {
        let mut paths = matchit::Router::new();
        for (template, methods) in self.paths {
            let foreign = self.foreign.get(template).copied();
            let route = Route {
                template,
                methods,
                foreign,
            };
            if let Err(error) = paths.insert(template, route) {
                panic!("route {template}: {error}");
            }
        }
        Router {
            state,
            requests,
            paths: Arc::new(paths),
            refused: self.refused,
            hints: self.hints,
            warns_below: self.warns_below,
        }
    }
}

impl<S: Send + Sync + 'static> Router<S> {
    /// The route, and its handler for this method.
    fn find(&self, method: &Method, path: &str, base_url: &str) -> Found<S> {
        let Ok(found) = self.paths.at(path) else {
            return self.not_found(path, base_url);
        };
        let Route {
            template,
            methods,
            foreign,
        } = found.value;
        let answer = |handler| Found {
            template,
            foreign: *foreign,
            handler,
        };
        // HEAD is GET without the body, and hyper leaves the body out.
        let wanted = if method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        if let Some((_, handler)) = methods.iter().find(|(method, _)| method == wanted) {
            let params = found
                .params
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            return answer(Ok((Arc::clone(handler), params)));
        }
        let mut allow: Vec<&str> = methods.iter().map(|(method, _)| method.as_str()).collect();
        if allow.contains(&"GET") {
            allow.push("HEAD");
        }
        let allow = allow.join(", ");
        let mut problem = Problem::new(
            ProblemKind::MethodNotAllowed,
            format!(
                "{template} takes {allow}, not {method}; {}",
                self.directory()
            ),
        );
        problem.allow = Some(allow);
        answer(Err(problem))
    }

    fn not_found(&self, path: &str, base_url: &str) -> Found<S> {
        let refused = self.refused.as_ref();
        let refused = refused.filter(|refused| path.starts_with(refused.prefix));
        let hint = self.hints.and_then(|hints| hints(path, base_url));
        let (problem, foreign) = match (refused, hint) {
            (Some(refused), _) => {
                let problem = Problem::new(ProblemKind::Forbidden, refused.detail);
                (problem, Some(refused.render))
            }
            (None, Some(hint)) => {
                let problem = Problem::new(ProblemKind::NotFound, hint.detail);
                (problem, Some(hint.render))
            }
            (None, None) => {
                let detail = format!("there is no such path; {}", self.directory());
                (Problem::new(ProblemKind::NotFound, detail), None)
            }
        };
        Found {
            template: UNMATCHED_ROUTE,
            foreign,
            handler: Err(problem),
        }
    }

    /// Advice how to find out which calls there are.
    fn directory(&self) -> &'static str {
        if self.paths.at("/openapi.json").is_ok() {
            "GET /openapi.json lists every call"
        } else {
            "docs/api.md lists every call"
        }
    }

    /// Answers one request, in a span that carries its id. Handlers that know who calls record `user` or `node`
    /// in it.
    pub(super) async fn answer(
        self,
        request: http::Request<Incoming>,
        context: Result<RequestContext, Problem>,
    ) -> Response {
        let id = Uuid::now_v7().to_string();
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let base_url = context.as_ref().ok().and_then(RequestContext::base_url);
        let Found {
            template: route,
            foreign,
            handler: found,
        } = self.find(
            &method,
            uri.path(),
            base_url.as_deref().unwrap_or("http://HOST"),
        );
        // Of the level of errors, so that they have it at every log level.
        let span = tracing::error_span!(
            "request", request_id = id, %method, route, user = Empty, node = Empty
        );
        async move {
            let began = Instant::now();
            let warnings = Warnings::default();
            let (parts, body) = request.into_parts();
            let body = ArrivingBody::new(body, &parts.headers);
            let reply = match context.and_then(|context| found.map(|found| (found, context))) {
                Ok(((handler, params), context)) => {
                    let (id, warnings) = (id.clone(), warnings.clone());
                    let request = Request::new(parts, body, params, context, id, warnings);
                    run(handler, self.state, request).await
                }
                Err(problem) => Err(problem.into()),
            };
            let (mut answer, cause) = match reply {
                Ok(answer) => (answer, None),
                Err(error) => {
                    let cause = error.cause().map(errors::chain);
                    let render = foreign.unwrap_or(response::problem);
                    (render(error.problem(), &id), cause)
                }
            };
            if self
                .warns_below
                .is_some_and(|prefix| route.starts_with(prefix) && foreign.is_none())
            {
                answer = warnings.write(uri.query(), answer).await;
            }
            let (status, duration) = (answer.status(), began.elapsed());
            self.requests.observe(&method, route, status, duration);
            log_request(uri.path(), status, duration, cause);
            if let Ok(value) = HeaderValue::from_str(&id) {
                answer.headers_mut().insert(&X_REQUEST_ID, value);
            }
            answer
        }
        .instrument(span)
        .await
    }
}

/// Runs a handler; its panic is an internal error.
async fn run<S>(handler: Handler<S>, state: Arc<S>, request: Request) -> Reply {
    let reply = AssertUnwindSafe(async { handler(state, request).await }).catch_unwind();
    reply.await.unwrap_or_else(|_| {
        tracing::error!("request handler panicked; the message of the panic is in the log above");
        Err(Problem::internal().into())
    })
}

/// Logs a request once, with the cause of its failure. An internal error is ours to fix; others pass or are
/// the operator's.
fn log_request(path: &str, status: StatusCode, duration: Duration, cause: Option<String>) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let code = status.as_u16();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(path, status = code, micros, error = cause, "request failed");
    } else if cause.is_some() || (status.is_server_error() && code != 503) {
        tracing::warn!(path, status = code, micros, error = cause, "request failed");
    } else {
        tracing::debug!(path, status = code, micros, "request answered");
    }
}
