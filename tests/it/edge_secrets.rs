//! Secrets that a job does not see: it has a placeholder, and the proxy of its node puts the value into requests to one host.

use crate::{
    egress::OPEN,
    job_secrets::{VALUE, assert_on_no_disk},
    sandbox::on_host,
    stored_secrets::set,
    support::{
        Cluster, Node, Sandbox, attack,
        cluster::wait_ready,
        eventually,
        listener::{Calls, Listener},
        tls_front::{Identity, TlsFront},
    },
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

/// What the variable of a secret holds in place of the value, up to the random part.
const PLACEHOLDER: &str = "cynode-secret-TOKEN-";
/// Begin of scripts: the image of the client has no links to its tools.
const TOOLS: &str = "unset no_proxy NO_PROXY\nwget() { /busybox wget \"$@\"; }\n";

/// Host of HTTPS, and the file of the authority that knows it.
struct Host {
    /// `localhost` and its port.
    name: String,
    calls: Calls,
    front: TlsFront,
    authority: PathBuf,
    _plain: Listener,
    _home: TempDir,
}

impl Host {
    /// Host that answers with the headers `authorization` that it gets.
    fn open() -> Self {
        let (plain, calls) = echo();
        let identity = Identity::new();
        let front = TlsFront::start(&identity, &format!("http://{}", plain.address));
        let home = tempfile::tempdir().unwrap();
        let authority = home.path().join("authority.pem");
        fs::write(&authority, identity.pem()).unwrap();
        let (_, port) = front.url.rsplit_once(':').unwrap();
        Self {
            name: format!("localhost:{port}"),
            calls,
            front,
            authority,
            _plain: plain,
            _home: home,
        }
    }

    /// Environment of a node that trusts it.
    fn trusted(&self) -> [(&str, &str); 1] {
        [("SSL_CERT_FILE", self.authority.to_str().unwrap())]
    }

    /// Task of the client, which may reach this host and others.
    fn task(&self, others: &[&str], script: &str) -> Value {
        let allow = [&[self.name.as_str()][..], others].concat();
        json!({
            "image": attack::images()[0],
            "command": ["/busybox", "sh", "-c", format!("{TOOLS}{script}")],
            "network_policy": "allowlist",
            "egress": {"allow": allow, "terminate": [self.name]},
            "secrets": [{"name": "TOKEN", "host": self.name}],
        })
    }

    /// Command of the client that asks this host.
    fn fetch(&self, path: &str) -> String {
        let name = &self.name;
        format!("/attack fetch {name} localhost {path} \"Authorization: Bearer $TOKEN\"\n")
    }

    /// Headers that the host got.
    fn got(&self) -> Vec<String> {
        self.calls.all().iter().map(authorization).collect()
    }
}

/// Server of plain HTTP that answers with the header `authorization` that it gets.
fn echo() -> (Listener, Calls) {
    let calls = Calls::default();
    let listener = Listener::open("127.0.0.1:0", &calls, |call, answer| {
        answer.text(200, &authorization(call));
    });
    (listener, calls)
}

fn authorization(call: &crate::support::Call) -> String {
    let mut headers = call.headers.iter();
    let found = headers.find(|(name, _)| name == "authorization");
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

/// Cluster whose node trusts a host, with a secret.
fn cluster(environment: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::start_orchestrated(&OPEN);
    set(&cluster.user, "TOKEN", VALUE).expect(200);
    if !environment.is_empty() {
        assert_eq!(cluster.node.process.terminate(), 0);
        start_node_again(&mut cluster, environment);
    }
    cluster
}

/// Starts the node again with these variables.
fn start_node_again(cluster: &mut Cluster, environment: &[(&str, &str)]) {
    let url = &cluster.orchestrator.control_url;
    let mut node = Node::launch_in(cluster.home(), "box", url, &[], environment);
    node.address("worker");
    cluster.node = node;
    wait_ready(&cluster.orchestrator);
}

/// Result of a task at its end.
fn finished(cluster: &Cluster, id: &str) -> Value {
    cluster.finish(id);
    cluster.result(id)["jobs"][0]["result_object"].clone()
}

#[test]
fn value_reaches_its_host_alone() {
    let (host, (other, other_calls)) = (Host::open(), echo());
    let cluster = cluster(&host.trusted());
    let other = format!("localhost:{}", other.address.port());
    let script = format!(
        "echo \"$TOKEN\"\n{}wget -q -O - --header \"Authorization: Bearer $TOKEN\" http://{other}/; echo
        echo here; until [ -e go ]; do /busybox usleep 5000; done",
        host.fetch("/a?b=c")
    );
    let id = cluster.create(&host.task(&[&other], &script));
    cluster.printed(&id, "here");
    assert_eq!(host.got(), [format!("Bearer {VALUE}")]);
    assert_eq!(host.calls.all()[0].path, "/a?b=c");
    let elsewhere = authorization(&other_calls.all()[0]);
    let placeholder = elsewhere.strip_prefix("Bearer ").unwrap();
    assert!(placeholder.starts_with(PLACEHOLDER), "{placeholder}");
    assert_eq!(placeholder.len(), PLACEHOLDER.len() + 32);
    assert_eq!(on_host(VALUE), Vec::<PathBuf>::new());
    assert_on_no_disk(&cluster);
    fs::write(cluster.node.workspaces()[0].join("workspace/go"), "").unwrap();
    let result = finished(&cluster, &id);
    let expected = format!("{placeholder}\n200 Bearer ***\nBearer {placeholder}\nhere\n");
    assert_eq!(result["stdout"], expected, "{result}");
    // The tunnel, the request in it, and the one in the clear.
    let totals = &result["effective"]["egress"];
    assert_eq!(
        (&totals["requests"], &totals["refused"]),
        (&json!(3), &json!(0)),
        "{result}"
    );
    assert_on_no_disk(&cluster);
}

#[test]
fn next_process_of_node_goes_on() {
    let host = Host::open();
    let mut cluster = cluster(&host.trusted());
    let script = format!(
        "{}until [ -e go ]; do /busybox usleep 5000; done\n{}",
        host.fetch("/1"),
        host.fetch("/2")
    );
    let id = cluster.create(&host.task(&[], &script));
    cluster.printed(&id, "200 Bearer ***\n");
    let place = eventually("the job has its workspace", || {
        cluster.node.workspaces().pop()
    });
    cluster.node.process.kill();
    start_node_again(&mut cluster, &host.trusted());
    fs::write(place.join("workspace/go"), "").unwrap();
    let result = finished(&cluster, &id);
    assert_eq!(result["stdout"], "200 Bearer ***\n".repeat(2), "{result}");
    assert_eq!(
        host.got(),
        [format!("Bearer {VALUE}"), format!("Bearer {VALUE}")]
    );
    assert_on_no_disk(&cluster);
}

#[test]
fn untrusted_host_gets_no_request() {
    let host = Host::open();
    // Trusts another.
    let other = Host::open();
    let cluster = cluster(&other.trusted());
    let id = cluster.create(&host.task(&[], &host.fetch("/")));
    let result = finished(&cluster, &id);
    let stdout = result["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("502 cynode: localhost:"), "{result}");
    assert!(
        stdout.contains("no authority that this node knows has issued its certificate"),
        "{result}"
    );
    host.front.wait_refused();
    assert_eq!(host.got(), [""; 0]);
    assert_eq!(result["effective"]["egress"]["refused"], 0, "{result}");
}

#[test]
fn tunnel_is_for_its_host_alone() {
    let host = Host::open();
    let cluster = cluster(&host.trusted());
    let name = &host.name;
    let script = format!(
        "/attack fetch {name} other.example / \"Authorization: $TOKEN\"
        /attack fetch {name} localhost / \"Host: other.example\"
        /attack fetch {name} localhost http://other.example/ \"Authorization: $TOKEN\"
        /attack fetch {name} localhost / \"Upgrade: websocket\""
    );
    let id = cluster.create(&host.task(&[], &script));
    let result = finished(&cluster, &id);
    let lines: Vec<_> = result["stdout"].as_str().unwrap().lines().collect();
    let statuses: Vec<_> = lines
        .iter()
        .filter_map(|line| line.split(' ').next())
        .filter(|word| !word.is_empty())
        .collect();
    assert_eq!(statuses, ["failed:", "400", "400", "200"], "{result}");
    let calls = host.calls.all();
    assert_eq!(calls.len(), 1);
    let is_upgrade = |(name, _): &(String, String)| name == "upgrade";
    assert!(!calls[0].headers.iter().any(is_upgrade));
    assert_eq!(result["effective"]["egress"]["refused"], 3, "{result}");
}

#[test]
fn plain_http_gets_the_value_too() {
    let (server, calls) = echo();
    let cluster = cluster(&[]);
    let name = format!("localhost:{}", server.address.port());
    let wanted = json!({
        "network_policy": "allowlist",
        "egress": {"allow": [name]},
        "secrets": [
            {"name": "TOKEN", "env": "AT_EDGE", "host": name},
            {"name": "TOKEN", "env": "OTHER", "host": name, "header": "x-key"},
        ],
    });
    let sandbox = Sandbox::create(&cluster.user, &wanted);
    let get = |variable: &str| {
        let script = format!(
            "unset no_proxy NO_PROXY; wget -q -O - --header \"Authorization: ${variable}\" http://{name}/"
        );
        sandbox.output(&script)
    };
    assert_eq!(get("AT_EDGE"), "***");
    assert!(get("OTHER").starts_with(PLACEHOLDER), "another header");
    let sent: Vec<_> = calls.all().iter().map(authorization).collect();
    assert_eq!(sent[0], VALUE);
    assert!(sent[1].starts_with(PLACEHOLDER), "{sent:?}");
    // Without TLS that the proxy opens, there is no authority.
    let script = "echo ${SSL_CERT_FILE-none}; ls -A /run/cynode; echo $AT_EDGE";
    let output = sandbox.output(script);
    assert!(
        output.starts_with(&format!("none\n{PLACEHOLDER}")),
        "{output}"
    );
    assert_on_no_disk(&cluster);
    sandbox.delete();
}
