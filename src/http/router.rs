//! From method and path to a handler.
//!
//! The router gives each request an id, answers 404 and 405 by
//! itself, turns a [`Problem`] into its response and a panic into a 500, and logs and measures
//! each request once, without its query (cursors and names are nobody's business).

use super::{
    metrics::{RequestMetrics, UNMATCHED_ROUTE},
    request::{Request, RequestContext},
    response::{self, Reply, Response},
    warnings::Warnings,
};
use crate::api::problem::{Problem, ProblemKind};
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderName, HeaderValue, Method};
use hyper::body::Incoming;
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Instant,
};
use uuid::Uuid;

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

type Handler<S> = Arc<dyn Fn(Arc<S>, Request) -> BoxFuture<'static, Reply> + Send + Sync>;
type Methods<S> = Vec<(Method, Handler<S>)>;
type Params = HashMap<String, String>;

/// A path with its `{name}` parameters, and what is there.
struct Route<S> {
    template: &'static str,
    methods: Methods<S>,
}

/// Collects routes; see [`Router::new`].
pub struct RouterBuilder<S> {
    paths: BTreeMap<&'static str, Methods<S>>,
    warns_below: Option<&'static str>,
}

/// Routes over a shared state `S`.
pub struct Router<S> {
    state: Arc<S>,
    requests: RequestMetrics,
    paths: Arc<matchit::Router<Route<S>>>,
    warns_below: Option<&'static str>,
}

impl<S> Clone for Router<S> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            requests: self.requests.clone(),
            paths: Arc::clone(&self.paths),
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

    /// The finished router over a shared state, which tells `requests` what it answers.
    ///
    /// # Panics
    /// When two paths exclude each other, which every start of the role would show.
    pub fn build(self, state: Arc<S>, requests: RequestMetrics) -> Router<S> {
        let mut paths = matchit::Router::new();
        for (template, methods) in self.paths {
            if let Err(error) = paths.insert(template, Route { template, methods }) {
                panic!("route {template}: {error}");
            }
        }
        Router {
            state,
            requests,
            paths: Arc::new(paths),
            warns_below: self.warns_below,
        }
    }
}

impl<S: Send + Sync + 'static> Router<S> {
    /// The template of the route, and its handler for this method.
    fn find(
        &self,
        method: &Method,
        path: &str,
    ) -> (&'static str, Result<(Handler<S>, Params), Problem>) {
        let Ok(found) = self.paths.at(path) else {
            let detail = format!("there is no such path; {}", self.directory());
            return (
                UNMATCHED_ROUTE,
                Err(Problem::new(ProblemKind::NotFound, detail)),
            );
        };
        let Route { template, methods } = found.value;
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
            return (template, Ok((Arc::clone(handler), params)));
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
        (template, Err(problem))
    }

    /// Where a caller finds out which calls there are.
    fn directory(&self) -> &'static str {
        if self.paths.at("/openapi.json").is_ok() {
            "GET /openapi.json lists every call"
        } else {
            "docs/api.md lists every call"
        }
    }

    /// Answers one request, or says what is wrong with how it came.
    pub(super) async fn answer(
        self,
        request: http::Request<Incoming>,
        arrival: Result<RequestContext, Problem>,
    ) -> Response {
        let began = Instant::now();
        let id = Uuid::now_v7().to_string();
        let (parts, body) = request.into_parts();
        let (method, uri) = (parts.method.clone(), parts.uri.clone());
        let (path, warnings) = (uri.path(), Warnings::default());
        let (route, found) = self.find(&method, path);
        let found = arrival.and_then(|arrival| found.map(|found| (found, arrival)));
        let reply = match found {
            Ok(((handler, params), arrival)) => {
                let request =
                    Request::new(parts, body, params, arrival, id.clone(), warnings.clone());
                AssertUnwindSafe(async { handler(self.state, request).await }).catch_unwind().await.unwrap_or_else(|_| {
                    tracing::error!(request = %id, %method, path, "a handler panicked; the lines above say where");
                    Err(Problem::internal())
                })
            }
            Err(problem) => Err(problem),
        };
        let mut answer = reply.unwrap_or_else(|problem| response::problem(&problem, &id));
        if self
            .warns_below
            .is_some_and(|prefix| route.starts_with(prefix))
        {
            answer = warnings.write(uri.query(), answer).await;
        }
        let (status, took) = (answer.status(), began.elapsed());
        self.requests.observe(&method, route, status, took);
        let status = status.as_u16();
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if status >= 500 && status != 503 {
            // The cause stands in a line of its own, as an error.
            tracing::warn!(request = %id, %method, path, status, micros, "request failed");
        } else {
            tracing::debug!(request = %id, %method, path, status, micros, "request");
        }
        if let Ok(value) = HeaderValue::from_str(&id) {
            answer.headers_mut().insert(&X_REQUEST_ID, value);
        }
        answer
    }
}
