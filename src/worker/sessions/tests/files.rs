//! Calls that are passed on to the file server, which may be hostile.

use super::*;
use crate::api::problem::ProblemKind;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use http_body_util::StreamBody;
use hyper::{body::Frame, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

/// Bytes of a large file.
const LARGE: usize = 64 << 20;

/// File server that answers with what it gets.
fn echo(stream: UnixStream) -> BoxFuture<'static, ()> {
    async move {
        let service = service_fn(async |request: http::Request<hyper::body::Incoming>| {
            assert!(request.headers().get("authorization").is_none());
            let answer = http::Response::builder()
                .header("content-type", "text/html")
                .header("etag", request.uri().to_string());
            Ok::<_, Infallible>(answer.body(request.into_body()).unwrap())
        });
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
    .boxed()
}

/// File server that reads the head of a call, and then writes `answer` and hangs up.
async fn say(mut stream: UnixStream, answer: &[u8]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let _ = stream.write_all(answer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways() {
    let sandbox = Sandbox::start().await;
    *sandbox.stand_in.shim.file_server.lock() = Some(echo);
    let block = Bytes::from(vec![b'z'; 1 << 20]);
    let blocks = futures_util::stream::repeat(block).take(LARGE >> 20);
    let frames = blocks.map(|block| Ok::<_, std::io::Error>(Frame::data(block)));
    let body = StreamBody::new(frames).boxed_unsync();
    let token = [("authorization", "Bearer secret")];
    let answer = sandbox
        .open(Method::PUT, "/files?path=/a%20b", &token, body)
        .await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["etag"], "/files?path=/a%20b");
    assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    let mut body = answer.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert!(data.iter().all(|byte| *byte == b'z'));
        length += data.len();
    }
    assert_eq!(length, LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_file_server_is_a_clear_error() {
    let servers: [super::stand_in::FileServer; 5] = [
        |stream| say(stream, b"").boxed(),
        |stream| say(stream, b"\x00\xff garbage\r\n\r\n").boxed(),
        |stream| {
            say(
                stream,
                b"HTTP/1.1 302 Found\r\nlocation: http://evil.example\r\n\r\n",
            )
            .boxed()
        },
        |stream| {
            say(
                stream,
                b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}",
            )
            .boxed()
        },
        |stream| {
            async move {
                let head = "x: y\r\n".repeat(100_000);
                say(stream, format!("HTTP/1.1 200 OK\r\n{head}\r\n").as_bytes()).await;
            }
            .boxed()
        },
    ];
    let sandbox = Sandbox::start().await;
    for server in servers {
        *sandbox.stand_in.shim.file_server.lock() = Some(server);
        let answer = sandbox.get("/files?path=x").await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.text());
        assert_eq!(answer.problem().kind, ProblemKind::SandboxFailed.uri());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_upload_gets_its_answer() {
    let sandbox = Sandbox::start().await;
    *sandbox.stand_in.shim.file_server.lock() = Some(|stream| {
        async move {
            let problem = crate::api::problem::Problem::new(
                ProblemKind::InsufficientStorage,
                "the workspace is full",
            );
            let body = serde_json::to_string(&problem.body("x")).unwrap();
            let length = body.len();
            let answer = format!("HTTP/1.1 507 x\r\ncontent-length: {length}\r\n\r\n{body}");
            say(stream, answer.as_bytes()).await;
        }
        .boxed()
    });
    let block = Bytes::from(vec![b'z'; 64 << 10]);
    let blocks = futures_util::stream::repeat(block).take(64);
    let frames = blocks.map(|block| Ok::<_, std::io::Error>(Frame::data(block)));
    let body = StreamBody::new(frames).boxed_unsync();
    let answer = sandbox.open(Method::PUT, "/files?path=x", &[], body).await;
    assert_eq!(answer.status(), StatusCode::INSUFFICIENT_STORAGE);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let problem: ProblemBody = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem.detail, "the workspace is full");
    assert_ne!(problem.instance, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_breaks_off_is_cut() {
    let sandbox = Sandbox::start().await;
    *sandbox.stand_in.shim.file_server.lock() =
        Some(|stream| say(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").boxed());
    let mut request = http::Request::new(whole(""));
    let url = format!("http://{}/s/x/y/1/files?path=x", sandbox.address);
    *request.uri_mut() = url.parse().unwrap();
    // The connection is cut, with or without a head before.
    if let Ok(answer) = sandbox.client.forward(request).await {
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body().collect().await.unwrap_err();
    }
}
