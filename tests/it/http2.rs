//! HTTP/2 at an encrypted gateway.

use crate::support::{
    Orchestrator, PASSWORD,
    tls::{config_offering, protocol_at},
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    runtime::{Handle, Runtime},
};
use tokio_rustls::TlsConnector;

/// Client of one gateway, on one connection.
#[derive(Clone)]
struct Client {
    address: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("any.example").unwrap();
        let connector = TlsConnector::from(config_offering(&["h2"]));
        let stream = connector.connect(name, stream).await.unwrap();
        let connected = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = connected.unwrap();
        Handle::current().spawn(connection);
        Self {
            address: address.to_owned(),
            sender,
        }
    }

    /// Sends a request; the status and the body of its answer.
    async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: String,
    ) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::from(body))
            .unwrap();
        let answer = self.sender.clone().send_request(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

#[test]
fn gateway_alone_offers_http2() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    let gateway = orchestrator.gateway.address();
    let control = orchestrator.control.address();
    let both = ["h2", "http/1.1"];
    assert_eq!(protocol_at(gateway, &both).as_deref(), Some("h2"));
    assert_eq!(
        protocol_at(gateway, &both[1..]).as_deref(),
        Some("http/1.1")
    );
    assert_eq!(protocol_at(gateway, &[]), None);
    // The tunnels of nodes begin with HTTP/1.1.
    assert_eq!(protocol_at(control, &both).as_deref(), Some("http/1.1"));
}

#[test]
fn many_calls_share_one_connection() {
    let home = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(home.path(), &["--tls", "on"]);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Client::connect(orchestrator.gateway.address()).await;
        let login = json!({"handle": "admin", "password": PASSWORD}).to_string();
        let (status, tokens) = client.call(Method::POST, "/v1/auth/login", "", login).await;
        assert_eq!(status, StatusCode::OK, "{tokens}");
        let token = tokens["access_token"].as_str().unwrap();
        let task = json!({"script": "true"}).to_string();
        let calls = (0..30).map(|_| client.call(Method::POST, "/v1/tasks", token, task.clone()));
        for (status, task) in join_all(calls).await {
            assert_eq!(status, StatusCode::CREATED, "{task}");
        }
        // Each stream shows its own credentials.
        let list = client.call(Method::GET, "/v1/tasks", "nonsense", String::new());
        let (status, problem) = list.await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{problem}");
        let list = client.call(Method::GET, "/v1/tasks?limit=30", token, String::new());
        let (status, list) = list.await;
        assert_eq!(status, StatusCode::OK, "{list}");
        assert_eq!(list["tasks"].as_array().unwrap().len(), 30);
    });
}
