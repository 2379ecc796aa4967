//! Requests in a tunnel whose TLS is opened, with a client that trusts the sandbox's authority, and a host of HTTPS.

use super::*;
use crate::{
    api::{JobId, jobs::SandboxSpec},
    background,
    http::metrics::MetricsRegistry,
    spool::Spool,
    tls::{Trust, provider},
    worker::{
        edge::{Divided, Edge},
        egress::{
            address::AddressPolicy, cache::Cache, decision::Lists, metrics::EgressMetrics,
            notices::Notices, rate::Rate, route::Route, tally::Meter,
        },
        ledger::{Job, tests::accepted},
    },
};
use ipnet::IpNet;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use std::fs;
use tempfile::TempDir;
use tokio::{
    io::{AsyncWriteExt as _, duplex},
    net::TcpListener,
    runtime::Handle,
    sync::Semaphore,
    time::sleep,
};
use tokio_rustls::TlsConnector;

/// Proxy of a sandbox whose job may reach one host, with a secret for it.
struct Stage {
    proxy: Arc<Proxy>,
    port: u16,
    /// Authority of the sandbox, in PEM.
    authority: Vec<u8>,
    placeholder: String,
    _home: TempDir,
}

impl Stage {
    async fn new(is_trusted: bool) -> Self {
        let (port, certificate) = host().await;
        let home = TempDir::new().unwrap();
        let file = home.path().join("authority.pem");
        fs::write(&file, certificate).unwrap();
        let name = format!("localhost:{port}");
        let spec = json!({
            "image": "i",
            "command": ["c"],
            "network_policy": "allowlist",
            "egress": {"allow": [name], "terminate": [name]},
            "secrets": [{"name": "TOKEN", "env": "TOKEN", "host": name, "header": "authorization"}],
        });
        let spec: SandboxSpec = serde_json::from_value(spec).unwrap();
        let values = serde_json::from_value(json!({"TOKEN": "swordfish"})).unwrap();
        let access = Divided::new(&spec, &values).unwrap().edge.unwrap();
        let (_, placeholder) = access.placeholders().next().unwrap();
        let authority = access.authority().to_vec();
        let allowed = spec.egress.unwrap();
        let job = Job::new(
            accepted(JobId::new(), 1),
            Spool::at("/nonexistent".into()),
            None,
        );
        let metrics = EgressMetrics::new(&MetricsRegistry::default());
        let loopback = ["127.0.0.0/8", "::1/128"];
        let loopback = loopback.map(|network| network.parse::<IpNet>().unwrap());
        let room = || Arc::new(Semaphore::new(8));
        let proxy = Proxy {
            lists: Lists::new(allowed.allow.clone(), None),
            addresses: AddressPolicy::new(loopback.into(), None),
            route: Arc::new(Route::new(None)),
            trust: Trust::new(None, is_trusted.then_some(file)),
            edge: Edge::new(Some(access)),
            meter: Arc::new(Meter::new(Arc::default(), None, metrics.clone(), true)),
            notices: Arc::new(Notices::new(&job, &allowed)),
            rate: Rate::new(),
            room: room(),
            node_room: room(),
            reserve: 0,
            turned_away: room(),
            cache: Arc::new(Cache::new(home.path(), None, 0, &metrics)).of_job(true),
        };
        Self {
            proxy: Arc::new(proxy),
            port,
            authority,
            placeholder: placeholder.into_string().unwrap(),
            _home: home,
        }
    }

    /// Text in which `HOST` and `SECRET` stand for what they are here.
    fn text(&self, text: &str) -> String {
        let host = format!("localhost:{}", self.port);
        text.replace("HOST", &host)
            .replace("SECRET", &self.placeholder)
    }

    /// What a job gets that sends these requests in one tunnel.
    async fn talk(&self, requests: &str) -> String {
        let server = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let target = Target {
            host: "localhost".parse().unwrap(),
            port: self.port,
        };
        let (near, far) = duplex(64 * 1024);
        let served = serve(&self.proxy, (far, Vec::new()), (server, target));
        let client = async {
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = self.connector().connect(name, near).await.unwrap();
            let requests = self.text(requests);
            stream.write_all(requests.as_bytes()).await.unwrap();
            let mut answers = Vec::new();
            // Where a request is CONNECT, hyper closes the connection without the end of TLS.
            let read = stream.read_to_end(&mut answers).await;
            let cut = read
                .err()
                .filter(|error| error.kind() != io::ErrorKind::UnexpectedEof);
            assert!(cut.is_none(), "{cut:?}");
            String::from_utf8(answers).unwrap()
        };
        let ((), answers) = tokio::join!(served, client);
        answers
    }

    /// Client that trusts the authority of the sandbox alone.
    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(&self.authority).unwrap();
        roots.add(authority).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

/// Host that answers each request with what it got; its port, and its certificate, which is its own authority.
async fn host() -> (u16, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    background::spawn("test_host", async move {
        while let Ok((stream, _)) = listener.accept().await {
            background::spawn("test_answer", answer(acceptor.clone(), stream));
        }
    });
    (port, certificate.pem())
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream) {
    let Ok(mut stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut request = Vec::new();
    while !is_whole(&request) {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    if request.starts_with(b"POST /close ") {
        let empty = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(empty).await;
        let _ = stream.shutdown().await;
        return;
    }
    let length = request.len();
    let begin = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let whole = [begin.as_bytes(), &request].concat();
    let _ = stream.write_all(&whole).await;
    let _ = stream.shutdown().await;
}

/// Whether all of a request is there: its head, and its body where that comes in chunks.
fn is_whole(request: &[u8]) -> bool {
    let is_chunked = request.windows(9).any(|part| part == b": chunked");
    let end: &[u8] = match is_chunked {
        true => b"\r\n0\r\n\r\n",
        false => b"\r\n\r\n",
    };
    request.ends_with(end)
}

#[tokio::test]
async fn requests_in_tunnel_get_the_value() {
    let stage = Stage::new(true).await;
    let requests = "GET /1?a HTTP/1.1\r\nHost: HOST\r\nAuthorization: Bearer SECRET\r\n\r\n\
                    GET /2 HTTP/1.1\r\nHost: HOST\r\nX-Key: SECRET\r\nConnection: close\r\n\r\n";
    let answers = stage.talk(requests).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    for line in [
        "GET /1?a HTTP/1.1",
        "host: HOST",
        "authorization: Bearer swordfish",
        "GET /2 HTTP/1.1",
        "x-key: SECRET",
    ] {
        let line = format!("{}\r\n", stage.text(line));
        assert!(answers.contains(&line), "{line}{answers}");
    }
}

#[tokio::test]
async fn body_in_chunks_goes_with_every_method() {
    let stage = Stage::new(true).await;
    for method in ["GET", "POST"] {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             3\r\nabc\r\n0\r\n\r\n"
        );
        let answer = stage.talk(&request).await;
        assert!(answer.ends_with("\r\n3\r\nabc\r\n0\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn upload_leaves_no_task_where_host_closes() {
    let stage = Stage::new(true).await;
    let alive = || Handle::current().metrics().num_alive_tasks();
    let before = alive();
    for _ in 0..16 {
        let request = "POST /close HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                       3\r\nabc\r\n0\r\n\r\n";
        let answer = stage.talk(request).await;
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }
    let ended = async {
        while alive() > before {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), ended).await.unwrap();
}

#[tokio::test]
async fn other_hosts_are_refused_inside() {
    let stage = Stage::new(true).await;
    for head in [
        "GET / HTTP/1.1\r\nHost: other.example",
        "GET http://other.example/ HTTP/1.1\r\nHost: HOST",
        "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443",
    ] {
        let request =
            format!("{head}\r\nAuthorization: Bearer SECRET\r\nConnection: close\r\n\r\n");
        let answers = stage.talk(&request).await;
        assert!(
            answers.starts_with("HTTP/1.1 400 "),
            "{request:?}: {answers}"
        );
        assert!(!answers.contains("swordfish"));
    }
}

#[tokio::test]
async fn untrusted_host_gets_no_request() {
    let stage = Stage::new(false).await;
    let request = "GET / HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n";
    let answers = stage.talk(request).await;
    assert!(answers.starts_with("HTTP/1.1 502 "), "{answers}");
    assert!(
        answers.contains("no authority that this node knows has issued its certificate"),
        "{answers}"
    );
}

#[test]
fn fault_of_host_is_told() {
    let target = Target {
        host: "api.example".parse().unwrap(),
        port: 8443,
    };
    let error = io::Error::other("it spoke in riddles");
    let refusal = not_connected(&target, &error);
    assert_eq!(refusal.status, StatusCode::BAD_GATEWAY);
    assert!(!refusal.is_by_rule);
    let told = "api.example:8443 failed (it spoke in riddles)";
    assert!(refusal.detail.contains(told), "{refusal:?}");
}
