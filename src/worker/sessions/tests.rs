//! Calls about a sandbox whose shim is a stand-in: a socket of this process, and files that it writes.

mod execs;
mod files;
mod stand_in;
mod terminals;

use super::{Terminals, exec, execs as records, files as file_calls, logs, stdin, terminal};
use crate::{
    api::{ExecId, problem::ProblemBody, sandboxes::exec::ExecList},
    background,
    http::{
        client::{CallBody, Client},
        host::AllowedHosts,
        listener_policy::ListenerPolicy,
        metrics::MetricsRegistry,
        request::Request,
        response,
        router::Router,
        server,
    },
    worker::ledger::Job,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use stand_in::StandIn;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};

/// Time in which everything happens.
const LIMIT: Duration = Duration::from_secs(30);

/// Handlers of a sandbox, without what checks tokens and finds the job.
struct Served {
    job: Arc<Job>,
    terminals: Terminals,
}

/// Sandbox behind HTTP.
struct Sandbox {
    stand_in: StandIn,
    address: SocketAddr,
    client: Client,
    _stop: watch::Sender<bool>,
}

/// Answer that was read.
struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn problem(&self) -> ProblemBody {
        serde_json::from_value(self.json()).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Sandbox {
    async fn start() -> Self {
        let stand_in = StandIn::start();
        let served = Served {
            job: Arc::clone(&stand_in.job),
            terminals: Terminals::default(),
        };
        let router = Router::<Served>::new()
            .route(
                Method::POST,
                "/s/x/y/{id}/exec",
                async |served: Arc<Served>, request| {
                    exec::start(Arc::clone(&served.job), request).await
                },
            )
            .route(
                Method::GET,
                "/s/x/y/{id}/execs",
                async |served: Arc<Served>, _| {
                    let execs = records::list(&served.job).await?;
                    response::ok(&ExecList { execs })
                },
            )
            .route(
                Method::GET,
                "/s/x/y/{id}/execs/{exec}/logs",
                async |served: Arc<Served>, request: Request| {
                    logs::answer(Arc::clone(&served.job), &request).await
                },
            )
            .route(
                Method::POST,
                "/s/x/y/{id}/execs/{exec}/stdin",
                async |served: Arc<Served>, request| stdin::take(&served.job, request).await,
            )
            .route(
                Method::GET,
                "/s/x/y/{id}/terminal",
                async |served: Arc<Served>, request: Request| {
                    terminal::connect(&served.terminals, Arc::clone(&served.job), &request).await
                },
            )
            .route(
                Method::GET,
                "/s/x/y/{id}/files",
                async |served: Arc<Served>, request| file_calls::pass(&served.job, request).await,
            )
            .route(
                Method::PUT,
                "/s/x/y/{id}/files",
                async |served: Arc<Served>, request| file_calls::pass(&served.job, request).await,
            );
        let requests = MetricsRegistry::default().requests("test");
        let router = router.build(Arc::new(served), requests);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let policy = ListenerPolicy::new(&[], AllowedHosts::default());
        let served = server::serve(listener, router, policy, None, stopped);
        background::spawn("test_server", served);
        Self {
            stand_in,
            address,
            client: Client::default(),
            _stop: stop,
        }
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: CallBody,
    ) -> http::Response<hyper::body::Incoming> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}/s/x/y/1{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let sent = tokio::time::timeout(LIMIT, self.client.forward(request));
        sent.await.unwrap().unwrap()
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let answer = self.open(method, path, headers, whole(body)).await;
        let (head, body) = answer.into_parts();
        let body = tokio::time::timeout(LIMIT, body.collect()).await;
        Answer {
            status: head.status,
            body: body.unwrap().unwrap().to_bytes(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], "").await
    }

    async fn exec(&self, body: Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.call(Method::POST, "/exec", &json, body.to_string())
            .await
    }
}

fn whole(body: impl Into<Bytes>) -> CallBody {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn id_in(answer: &Answer) -> ExecId {
    answer.json()["exec_id"].as_str().unwrap().parse().unwrap()
}
