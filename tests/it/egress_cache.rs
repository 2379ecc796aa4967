//! Downloads that one job fetches and another gets, where the host confirms them.

use crate::support::{
    Api, Call, Cluster, eventually, eventually_eq,
    exposition::Exposition,
    listener::{Answer, Calls, Listener},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Flags of an operator who lets jobs reach this machine.
const OPEN: [&str; 4] = [
    "--egress-allow",
    "*",
    "--egress-allow-private",
    "127.0.0.0/8,::1/128",
];
/// Flags of a node with the smallest cache.
const CACHE: [&str; 2] = ["--egress-cache", "16MiB"];
/// Bytes of a large body: five of them fit into the cache, and six do not.
const LARGE: usize = 3 << 20;

/// Host with some files, of the same version all of them.
struct Host {
    listener: Listener,
    calls: Calls,
    version: Arc<Mutex<&'static str>>,
}

impl Host {
    fn open() -> Self {
        let calls = Calls::default();
        let version = Arc::new(Mutex::new("v1"));
        let current = Arc::clone(&version);
        let listener = Listener::open("127.0.0.1:0", &calls, move |call, answer| {
            let version = *current.lock().unwrap();
            serve(call, answer, version);
        });
        Self {
            listener,
            calls,
            version,
        }
    }

    fn name(&self) -> String {
        format!("localhost:{}", self.listener.address.port())
    }

    fn set_version(&self, version: &'static str) {
        *self.version.lock().unwrap() = version;
    }

    /// Calls that asked whether a version is still right, and those that got a body.
    fn counts(&self) -> (usize, usize) {
        let calls = self.calls.all();
        let conditional = calls.iter().filter(|call| condition(call).is_some());
        let conditional = conditional.count();
        (conditional, calls.len() - conditional)
    }
}

fn condition(call: &Call) -> Option<&str> {
    let mut headers = call.headers.iter();
    let found = headers.find(|(name, _)| name == "if-none-match");
    found.map(|(_, value)| value.as_str())
}

fn serve(call: &Call, answer: Answer, version: &str) {
    let strong = format!("\"{version}\"");
    let tag = match call.path.as_str() {
        "/weak" => format!("ETag: W/{strong}"),
        _ => format!("ETag: {strong}"),
    };
    let more = match call.path.as_str() {
        "/cookie" => Some("Set-Cookie: a=b"),
        "/star" => Some("Vary: *"),
        "/private" => Some("Cache-Control: private"),
        _ => None,
    };
    let lines: Vec<String> = [tag].into_iter().chain(more.map(str::to_owned)).collect();
    if condition(call) == Some(strong.as_str()) {
        return answer.headed(304, &lines, b"");
    }
    if call.path.starts_with("/large/") {
        return answer.headed(200, &lines, &vec![b'x'; LARGE]);
    }
    answer.headed(200, &lines, format!("body {version}\n").as_bytes());
}

fn open_cluster() -> Cluster {
    Cluster::start_operated(&OPEN, &CACHE)
}

/// Runs a script to its end in a sandbox that may reach a host; its result.
fn run(cluster: &Cluster, host: &Host, script: &str) -> Value {
    let name = host.name();
    // A client that is told to keep away from the proxy for `localhost` would ask the sandbox itself.
    let prelude = format!("unset no_proxy NO_PROXY; get() {{ wget -q -O - http://{name}$1; }}\n");
    let id = cluster.create(&json!({
        "script": format!("{prelude}{script}"),
        "network_policy": "allowlist",
        "egress": {"allow": [name]},
    }));
    cluster.finish(&id);
    cluster.result(&id)["jobs"][0]["result_object"].clone()
}

fn metrics(cluster: &Cluster) -> Exposition {
    let worker = cluster.node.url().strip_prefix("http://").unwrap();
    Exposition::of(&Api::new(worker))
}

/// Requests that came from the cache, that did not, and that it had no part in.
fn results(cluster: &Cluster) -> [f64; 3] {
    let metrics = metrics(cluster);
    ["hit", "miss", "bypass"].map(|result| {
        metrics.value(&format!(
            "cynode_node_egress_cache_requests_total{{result=\"{result}\"}}"
        ))
    })
}

fn bytes(cluster: &Cluster) -> f64 {
    metrics(cluster).value("cynode_node_egress_cache_bytes")
}

/// Files of the cache that are whole.
fn files(cluster: &Cluster) -> Vec<PathBuf> {
    let entries = fs::read_dir(cluster.home().join("box/worker/egress-cache")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_whole = |path: &PathBuf| {
        !path
            .file_name()
            .unwrap()
            .as_encoded_bytes()
            .starts_with(b".")
    };
    paths.filter(is_whole).collect()
}

/// Waits until the cache has so many files.
fn wait_stored(cluster: &Cluster, count: usize) {
    eventually_eq("downloads are stored", count, || files(cluster).len());
}

#[test]
fn second_job_gets_what_the_first_fetched() {
    let host = Host::open();
    let mut cluster = open_cluster();
    let first = run(&cluster, &host, "get '/a?token=in-url'");
    assert_eq!(first["stdout"], "body v1\n", "{first}");
    wait_stored(&cluster, 1);
    assert!(bytes(&cluster) > 0.0);
    let text = String::from_utf8_lossy(&fs::read(&files(&cluster)[0]).unwrap()).into_owned();
    assert!(text.contains("body v1") && !text.contains("in-url"));

    let second = run(&cluster, &host, "get '/a?token=in-url'");
    assert_eq!(second["stdout"], "body v1\n", "{second}");
    assert_eq!(second["effective"]["egress"], first["effective"]["egress"]);
    assert_eq!(host.counts(), (1, 1));
    assert_eq!(results(&cluster), [1.0, 1.0, 0.0]);

    cluster.node.process.kill();
    cluster.restart_node_with(&CACHE);
    let third = run(&cluster, &host, "get '/a?token=in-url'");
    assert_eq!(third["stdout"], "body v1\n", "{third}");
    assert_eq!(host.counts(), (2, 1));
}

#[test]
fn new_version_replaces_the_old() {
    let host = Host::open();
    let cluster = open_cluster();
    run(&cluster, &host, "get /a");
    wait_stored(&cluster, 1);
    host.set_version("v2");
    let changed = run(&cluster, &host, "get /a");
    assert_eq!(changed["stdout"], "body v2\n", "{changed}");
    eventually("the new version is stored", || {
        let content = fs::read(files(&cluster).first()?).ok()?;
        let text = String::from_utf8_lossy(&content).into_owned();
        text.contains("body v2").then_some(())
    });
    let again = run(&cluster, &host, "get /a");
    assert_eq!(again["stdout"], "body v2\n", "{again}");
    let asked: Vec<_> = host
        .calls
        .all()
        .iter()
        .map(|call| condition(call).map(str::to_owned))
        .collect();
    let expected = [None, Some("\"v1\""), Some("\"v2\"")];
    assert_eq!(asked, expected.map(|tag| tag.map(str::to_owned)));
}

#[test]
fn answers_of_one_client_are_not_stored() {
    let host = Host::open();
    let cluster = open_cluster();
    let script = "for path in /weak /cookie /star /private; do get $path; get $path; done; \
        wget -q -O - --header 'Authorization: Bearer x' http://$HOST/a; \
        wget -q -O - --header 'Range: bytes=0-1' http://$HOST/a; \
        wget -q -O - --post-data x http://$HOST/a; get /last";
    let script = format!("HOST={}\n{script}", host.name());
    let result = run(&cluster, &host, &script);
    assert_eq!(result["stdout"], "body v1\n".repeat(12), "{result}");
    // Of all that came before, too, something would be there by now.
    wait_stored(&cluster, 1);
    let result = run(&cluster, &host, "get /last; get /a");
    assert_eq!(result["stdout"], "body v1\n".repeat(2), "{result}");
    assert_eq!(host.counts(), (1, 13));
    assert_eq!(results(&cluster), [1.0, 10.0, 3.0]);
}

#[test]
fn damaged_download_is_not_served_as_whole() {
    let host = Host::open();
    let cluster = open_cluster();
    run(&cluster, &host, "get /large/1 | wc -c");
    wait_stored(&cluster, 1);
    let path = files(&cluster).remove(0);
    let mut content = fs::read(&path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(path, content).unwrap();
    let result = run(&cluster, &host, "get /large/1 | wc -c");
    let got: usize = result["stdout"].as_str().unwrap().trim().parse().unwrap();
    assert!(got < LARGE, "{got} of {LARGE}: {result}");
    assert_eq!(host.counts(), (1, 1));
    let again = run(&cluster, &host, "get /large/1 | wc -c");
    assert_eq!(again["stdout"], format!("{LARGE}\n"), "{again}");
    assert_eq!(host.counts(), (1, 2));
}

#[test]
fn least_recently_used_goes_where_cache_is_full() {
    let host = Host::open();
    let cluster = open_cluster();
    for number in 1..=5 {
        run(&cluster, &host, &format!("get /large/{number} | wc -c"));
        wait_stored(&cluster, number);
    }
    run(&cluster, &host, "get /large/6 | wc -c");
    // Down to nine tenths.
    wait_stored(&cluster, 4);
    assert!(bytes(&cluster) <= f64::from(16 << 20));
    let script = "get /large/6 | wc -c; get /large/1 | wc -c";
    let result = run(&cluster, &host, script);
    assert_eq!(result["stdout"], format!("{LARGE}\n").repeat(2), "{result}");
    assert_eq!(host.counts(), (1, 7));
}
