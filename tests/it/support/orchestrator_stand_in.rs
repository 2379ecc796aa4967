//! An orchestrator that is none: it plays the Node API for real nodes, at URLs that only what it
//! delivers can report, and misbehaves where a test wants it to.
//!
//! By default it behaves well: it registers every caller with the pre-shared key, serves a
//! configuration, accepts acknowledgements and reports, and requires the token that it issued last.

use super::{
    cluster::PSK,
    lasting_port,
    listener::{Answer, Call, Calls, Listener},
};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard};

/// Path of the first registration; the only one that a node may know in advance.
pub(crate) const FIRST: &str = "/v1/nodes/register";
/// Delivered path of further registrations.
pub(crate) const ENROL: &str = "/x/enrol-3";
/// Delivered path of the configuration and its acknowledgement.
pub(crate) const CONFIG: &str = "/x/config-9";
/// Delivered path of reports.
pub(crate) const REPORT: &str = "/x/report-7";

/// Delivered path of tunnels, which nothing answers unless a test's script does.
pub(crate) const TUNNEL: &str = "/x/tunnel-5";

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2036-01-01T00:00:00Z";

/// Kind of a node's call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// A registration.
    Register,
    /// Fetching the configuration.
    Config,
    /// Acknowledging it.
    Ack,
    /// A capability report.
    Report,
}

impl Step {
    /// Kind of this call; `None` for a path that no node was given.
    pub(crate) fn of(call: &Call) -> Option<Self> {
        match (call.method.as_str(), call.path.as_str()) {
            ("POST", FIRST | ENROL) => Some(Self::Register),
            ("GET", CONFIG) => Some(Self::Config),
            ("POST", CONFIG) => Some(Self::Ack),
            ("POST", REPORT) => Some(Self::Report),
            _ => None,
        }
    }
}

/// Misbehaviour of the orchestrator.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reaction {
    /// A problem of this status and kind, such as 409 and `slug-taken`.
    Problem(u16, &'static str),
    /// No answer; the call is left hanging.
    Silence,
}

/// Answers a call, or returns it for the normal answer.
type Script = dyn Fn(&Call, Answer) -> Option<Answer> + Send + Sync;

/// A stand-in orchestrator.
pub(crate) struct OrchestratorStandIn {
    /// URL for a node's `--orchestrator`.
    pub(crate) url: String,
    address: String,
    calls: Calls,
    state: Arc<Mutex<State>>,
    listener: Option<Listener>,
}

struct State {
    base_url: String,
    script: Arc<Script>,
    offers_tunnel: bool,
    registrations: usize,
    /// The token that is accepted.
    jwt: Option<String>,
    config: Value,
    version: u64,
    unanswered: Vec<Answer>,
}

impl OrchestratorStandIn {
    /// Starts one that behaves well.
    pub(crate) fn start() -> Self {
        // A port that stays reserved while the stand-in is away.
        let address = format!("127.0.0.1:{}", lasting_port());
        let url = format!("http://{address}");
        let state = State {
            base_url: url.clone(),
            script: Arc::new(|_, answer| Some(answer)),
            offers_tunnel: false,
            registrations: 0,
            jwt: None,
            config: config(&url),
            version: 1,
            unanswered: Vec::new(),
        };
        let mut orchestrator = Self {
            url,
            address,
            calls: Calls::default(),
            state: Arc::new(Mutex::new(state)),
            listener: None,
        };
        orchestrator.reopen();
        orchestrator
    }

    /// From now on every call is shown to this script first; what it hands back is answered well.
    pub(crate) fn script(
        &self,
        script: impl Fn(&Call, Answer) -> Option<Answer> + Send + Sync + 'static,
    ) {
        self.state().script = Arc::new(script);
    }

    /// From now on does this one step wrong, and all others well.
    pub(crate) fn fail(&self, step: Step, reaction: Reaction) {
        let state = Arc::clone(&self.state);
        self.script(move |call, answer| {
            if Step::of(call) != Some(step) {
                return Some(answer);
            }
            match reaction {
                Reaction::Problem(status, slug) => answer.problem(status, slug),
                Reaction::Silence => state.lock().unwrap().unanswered.push(answer),
            }
            None
        });
    }

    /// From now on does everything well, and hangs up on those that got no answer.
    pub(crate) fn well_again(&self) {
        self.script(|_, answer| Some(answer));
        self.state().unanswered.clear();
    }

    /// Delivers URLs with this base from now on, as behind a proxy.
    pub(crate) fn deliver(&self, base_url: &str) {
        base_url.clone_into(&mut self.state().base_url);
    }

    /// Offers tunnels from now on, at a path that answers 404.
    pub(crate) fn offer_tunnel(&self) {
        self.state().offers_tunnel = true;
    }

    /// Accepts no token any more until it has given a new one.
    pub(crate) fn revoke(&self) {
        self.state().jwt = None;
    }

    /// Changes the configuration that it serves, whose version is raised.
    pub(crate) fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        state.version += 1;
        state.config["config_version"] = state.version.to_string().into();
        change(&mut state.config);
    }

    /// Goes away: connections are refused.
    pub(crate) fn close(&mut self) {
        self.listener = None;
    }

    /// Is there again, at the same address, and knows what it knew.
    pub(crate) fn reopen(&mut self) {
        let state = Arc::clone(&self.state);
        let answer = move |call: &Call, answer: Answer| {
            let script = Arc::clone(&state.lock().unwrap().script);
            if let Some(answer) = script(call, answer) {
                state.lock().unwrap().answer(call, answer);
            }
        };
        self.listener = Some(Listener::open(&self.address, &self.calls, answer));
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.all()
    }

    /// Kinds of all calls so far. Fails on a path that no node was given.
    #[track_caller]
    pub(crate) fn steps(&self) -> Vec<Step> {
        let step = |call: &Call| {
            Step::of(call).unwrap_or_else(|| panic!("a path of the node's own: {call:?}"))
        };
        self.calls().iter().map(step).collect()
    }

    /// Waits for the `nth` call of this step, counted from 1.
    pub(crate) fn call(&self, step: Step, nth: usize) -> Call {
        let what = format!("{step:?}, for the {nth}. time");
        let this = |call: &Call| {
            let before = |other: &&Call| other.number <= call.number;
            Step::of(call) == Some(step)
                && self
                    .calls()
                    .iter()
                    .filter(before)
                    .filter(|other| Step::of(other) == Some(step))
                    .count()
                    == nth
        };
        self.calls.wait(&what, this)
    }

    /// Token that a node got last for its calls here.
    pub(crate) fn jwt(&self) -> String {
        jwt(self.state().registrations)
    }

    /// Token that a node has to accept at its Worker API.
    pub(crate) fn worker_token(&self) -> String {
        let state = self.state();
        let token = &state.config["worker_api"]["orchestrator_bearer_token"];
        token.as_str().unwrap().to_owned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    /// Answers as an orchestrator does.
    fn answer(&mut self, call: &Call, answer: Answer) {
        let Some(step) = Step::of(call) else {
            return answer.problem(404, "not-found");
        };
        if step == Step::Register {
            return self.register(&call.body, answer);
        }
        if self.jwt.as_ref() != Some(&call.token) {
            return answer.problem(401, "unauthorized");
        }
        match step {
            Step::Config => answer.status(200, &self.config),
            Step::Ack if call.body["config_version"] != self.config["config_version"] => {
                answer.problem(409, "conflict");
            }
            _ => answer.status(204, &Value::Null),
        }
    }

    fn register(&mut self, body: &Value, answer: Answer) {
        if body["psk"] != PSK {
            return answer.problem(401, "unauthorized");
        }
        let capability = &body["capability"];
        let slug = &capability["node"]["node_slug"];
        let is_known = self.config["node_slug"] == *slug;
        self.config["node_slug"] = slug.clone();
        self.config["orchestrator"]["endpoints"]["worker_api_target_url"] =
            capability["worker_api"]["base_url"].clone();
        self.registrations += 1;
        let jwt = jwt(self.registrations);
        let base = &self.base_url;
        let mut endpoints = json!({
            "worker_registration_url": format!("{base}{ENROL}"),
            "node_report_url": format!("{base}{REPORT}"),
            "node_config_url": format!("{base}{CONFIG}"),
        });
        if self.offers_tunnel {
            endpoints["node_tunnel_url"] = format!("{base}{TUNNEL}").into();
        }
        let bootstrap = json!({
            "version": 1, "issued_at": NOW,
            "orchestrator": {"base_url": base, "endpoints": endpoints},
            "auth": {"node_jwt": jwt, "expires_at": LATER},
        });
        self.jwt = Some(jwt);
        answer.status(if is_known { 200 } else { 201 }, &bootstrap);
    }
}

/// The token of the `nth` registration.
fn jwt(nth: usize) -> String {
    format!("the-token-of-registration-{nth}")
}

/// The first configuration; what depends on the node comes with its registration.
fn config(url: &str) -> Value {
    let endpoints = json!({
        "worker_api_target_url": "", "node_report_url": format!("{url}{REPORT}"),
    });
    json!({
        "version": 1, "config_version": "1", "issued_at": NOW, "node_slug": "",
        "orchestrator": {"base_url": url, "endpoints": endpoints},
        "sandbox_registry": {"registry_url": ""}, "model_cache": {"cache_url": ""},
        "policy": {"sandbox": {"default_network_policy": "restricted"}},
        "worker_api": {"orchestrator_bearer_token": "a-worker-token-that-only-a-configuration-tells"},
    })
}
