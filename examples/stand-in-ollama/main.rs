//! A model server without a model, for tests: Ollama's endpoints and the shapes of its answers
//! (<https://github.com/ollama/ollama/blob/main/docs/api.md>), from a static binary that is put
//! into a local image, so that tests need neither Ollama's image nor a network.
//!
//! It says everything back: `echo: ` and the prompt, word by word in a stream. Times, digests and
//! durations are always the same, so that an answer can be foretold. A pull fetches nothing and
//! leaves a small file below `$OLLAMA_MODELS`, which a volume keeps as it keeps real models; a
//! model whose name starts with `missing` can't be pulled. A model that was asked once counts as
//! loaded.
//!
//! Beside Ollama's own `OLLAMA_HOST` and `OLLAMA_MODELS`:
//!
//! - `STAND_IN_FAIL=text`: says so on stderr and exits 1, as a server that can't start
//! - `STAND_IN_SILENT=1`: takes connections and never answers
//! - `STAND_IN_MODELS=a,b`: has these models from the start
//! - `STAND_IN_VERSION=v`: the version that it tells
//! - `STAND_IN_PAUSE_MS=n`: waits so long before each piece of a stream
//! - `STAND_IN_UPSTREAM=host:port`: has this real model server answer what comes at `/v1/…`

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's own output"
)]

mod embed;
mod http;
mod named;
mod talk;
mod upstream;

use http::{Out, Request, TEXT, receive};
use named::Named;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, BufReader},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use talk::{Dialect, parse};

const PORT: &str = "11434";
const MODELS: &str = "/root/.ollama/models";
const WHEN: &str = "2026-01-01T00:00:00Z";
const WHEN_IN_SECONDS: u64 = 1_767_225_600;
const SIZE: u64 = 3_000_000;
const CONTEXT_LENGTH: u64 = 4096;

fn main() -> ExitCode {
    if let Ok(text) = env::var("STAND_IN_FAIL") {
        eprintln!("Error: {text}");
        return ExitCode::FAILURE;
    }
    match env::args().nth(1).as_deref() {
        None | Some("serve") => {}
        Some(other) => {
            eprintln!("Error: unknown command {other:?}; there is only `serve`");
            return ExitCode::FAILURE;
        }
    }
    end_on_signals();
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The kernel drops signals that PID 1 of a container leaves to their default: without a handler,
/// every stop would take as long as the engine waits before it kills.
#[allow(unsafe_code, reason = "std has no signals")]
fn end_on_signals() {
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: `_exit` is one of the functions that a signal handler may call.
        unsafe { libc::_exit(0) }
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let handler = end as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler has the signature that the system calls it with, and lives forever.
        unsafe { libc::signal(signal, handler) };
    }
}

fn serve() -> io::Result<()> {
    let server = Server {
        models: env::var_os("OLLAMA_MODELS").map_or_else(|| PathBuf::from(MODELS), PathBuf::from),
        loaded: Mutex::default(),
        version: env::var("STAND_IN_VERSION").unwrap_or_else(|_| "0.0.0-stand-in".to_owned()),
        pause: env::var("STAND_IN_PAUSE_MS")
            .ok()
            .and_then(|text| text.parse().ok())
            .map(Duration::from_millis),
        upstream: env::var("STAND_IN_UPSTREAM").ok(),
    };
    let given = env::var("STAND_IN_MODELS").unwrap_or_default();
    for name in given.split(',').filter_map(full_name) {
        server.keep(&name)?;
    }
    let silent = env::var_os("STAND_IN_SILENT").is_some();
    let listener = TcpListener::bind(address(&env::var("OLLAMA_HOST").unwrap_or_default()))?;
    println!("stand-in-ollama listens on {}", listener.local_addr()?);
    let mut unanswered = Vec::new();
    thread::scope(|scope| {
        for stream in listener.incoming().map_while(Result::ok) {
            if silent {
                unanswered.push(stream);
            } else {
                // Whoever hangs up in the middle of an answer is not heard of again.
                scope.spawn(|| server.converse(stream));
            }
        }
    });
    Ok(())
}

/// Where to listen, in Ollama's way of saying it: `[http://][host][:port]`.
fn address(host: &str) -> String {
    let host = host.trim_start_matches("http://").trim_end_matches('/');
    match host.rsplit_once(':') {
        _ if host.is_empty() => format!("127.0.0.1:{PORT}"),
        Some(("", port)) => format!("0.0.0.0:{port}"),
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:{PORT}"),
    }
}

/// A model's name with its tag; `None` when it can't be one.
fn full_name(name: &str) -> Option<String> {
    let known = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
    (name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(known)).then(|| {
        let tag = if name.contains(':') { "" } else { ":latest" };
        format!("{name}{tag}")
    })
}

/// What a model is made of.
fn details() -> Value {
    json!({
        "parent_model": "", "format": "gguf", "family": "echo", "families": ["echo"],
        "parameter_size": "1M", "quantization_level": "Q4_0",
    })
}

/// 64 hexadecimal digits that belong to a name.
fn digest(name: &str) -> String {
    let digits = (0..4_u64).map(|salt| {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ salt, |hash, b| {
            (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        format!("{hash:016x}")
    });
    digits.collect()
}

struct Server {
    models: PathBuf,
    /// Names of the models that were asked, which stay in memory.
    loaded: Mutex<BTreeSet<String>>,
    version: String,
    pause: Option<Duration>,
    upstream: Option<String>,
}

impl Server {
    /// Answers what comes on a connection until it is closed.
    fn converse(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = Out {
            stream,
            pause: self.pause,
        };
        while let Some(request) = receive(&mut reader)? {
            eprintln!("{} {}", request.method, request.path);
            if let Some(upstream) = &self.upstream
                && request.path.starts_with("/v1/")
            {
                return upstream::pass(upstream, &request, &mut out);
            }
            self.answer(&request, &mut out)?;
            if request.last {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request, out: &mut Out) -> io::Result<()> {
        match (request.method.as_str(), request.path.as_str()) {
            ("HEAD", "/" | "/api/version" | "/api/tags") => out.whole(200, TEXT, ""),
            ("GET", "/") => out.whole(200, TEXT, "Ollama is running"),
            ("GET", "/api/version") => out.json(200, &json!({"version": self.version})),
            ("GET", "/api/tags") => out.json(200, &self.tags()),
            ("GET", "/api/ps") => out.json(200, &self.loaded()),
            ("POST", "/api/pull") => self.pull(&request.body, out),
            ("DELETE", "/api/delete") => self.delete(&request.body, out),
            ("POST", "/api/generate") => self.talk(Dialect::Generate, &request.body, out),
            ("POST", "/api/chat") => self.talk(Dialect::Chat, &request.body, out),
            ("GET", "/v1/models") => out.json(200, &self.openai_models()),
            ("POST", "/v1/chat/completions") => self.talk(Dialect::OpenAi, &request.body, out),
            ("POST", "/v1/messages") => {
                self.talk(Dialect::Named(Named::Messages), &request.body, out)
            }
            ("POST", "/v1/responses") => {
                self.talk(Dialect::Named(Named::Responses), &request.body, out)
            }
            ("POST", "/api/show") => self.show(&request.body, out),
            ("POST", "/api/embed") => self.embed(Dialect::Chat, &request.body, out),
            ("POST", "/v1/embeddings") => self.embed(Dialect::OpenAi, &request.body, out),
            (_, "/" | "/api/version" | "/api/tags" | "/api/ps" | "/api/pull" | "/api/generate")
            | (_, "/api/delete" | "/api/show" | "/api/embed" | "/api/chat")
            | (_, "/v1/models" | "/v1/chat/completions" | "/v1/messages" | "/v1/responses")
            | (_, "/v1/embeddings") => out.whole(405, TEXT, "405 method not allowed"),
            _ => out.whole(404, TEXT, "404 page not found"),
        }
    }

    /// Makes a model one that is there. No name holds a `%`, so it can stand for the slash.
    fn keep(&self, name: &str) -> io::Result<()> {
        fs::create_dir_all(&self.models)?;
        fs::write(self.models.join(name.replace('/', "%")), name)
    }

    /// The models that are there.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.models)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|name| name.replace('%', "/"))
            .collect();
        names.sort();
        names
    }

    fn tags(&self) -> Value {
        let model = |name: String| {
            let details = details();
            json!({
                "name": name, "model": name, "modified_at": WHEN, "size": SIZE,
                "digest": digest(&name), "details": details,
            })
        };
        json!({"models": self.names().into_iter().map(model).collect::<Vec<_>>()})
    }

    fn in_memory(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loaded(&self) -> Value {
        let model = |name: &String| {
            json!({
                "name": name, "model": name, "size": SIZE, "digest": digest(name), "expires_at": WHEN,
                "size_vram": SIZE, "context_length": CONTEXT_LENGTH,
            })
        };
        json!({"models": self.in_memory().iter().map(model).collect::<Vec<_>>()})
    }

    fn delete(&self, body: &[u8], out: &mut Out) -> io::Result<()> {
        let wish = match parse(body) {
            Ok(wish) => wish,
            Err(complaint) => return out.json(400, &json!({"error": complaint})),
        };
        let name = wish["model"].as_str().or(wish["name"].as_str());
        let name = name.unwrap_or_default();
        let known = full_name(name).filter(|name| self.names().contains(name));
        let Some(full) = known else {
            let error = format!("model '{name}' not found");
            return out.json(404, &json!({"error": error}));
        };
        fs::remove_file(self.models.join(full.replace('/', "%")))?;
        self.in_memory().remove(&full);
        out.whole(200, TEXT, "")
    }

    fn openai_models(&self) -> Value {
        let model = |name| json!({"id": name, "object": "model", "created": WHEN_IN_SECONDS, "owned_by": "library"});
        let models: Vec<Value> = self.names().into_iter().map(model).collect();
        // Ollama says null, not an empty list, where there is none.
        let data = (!models.is_empty()).then_some(models);
        json!({"object": "list", "data": data})
    }

    fn pull(&self, body: &[u8], out: &mut Out) -> io::Result<()> {
        let wish = match parse(body) {
            Ok(wish) => wish,
            Err(complaint) => return out.json(400, &json!({"error": complaint})),
        };
        // `name` is what `model` was called first; clients still send it.
        let name = wish["model"].as_str().or(wish["name"].as_str());
        let Some(name) = name.and_then(full_name) else {
            return out.json(400, &json!({"error": "invalid model name"}));
        };
        let whole = wish["stream"] == false;
        let manifest = json!({"status": "pulling manifest"});
        if name.starts_with("missing") {
            let error = json!({"error": "pull model manifest: file does not exist"});
            return if whole {
                out.json(500, &error)
            } else {
                out.lines([manifest, error])
            };
        }
        let success = || match self.keep(&name) {
            Ok(()) => json!({"status": "success"}),
            Err(error) => json!({"error": error.to_string()}),
        };
        if whole {
            let end = success();
            let status = if end["error"].is_null() { 200 } else { 500 };
            return out.json(status, &end);
        }
        let digest = digest(&name);
        let layer = json!({
            "status": format!("pulling {}", &digest[..12]), "digest": format!("sha256:{digest}"), "total": SIZE,
        });
        let progress = [SIZE / 2, SIZE].map(|completed| {
            let mut progress = layer.clone();
            progress["completed"] = completed.into();
            progress
        });
        let rest = ["verifying sha256 digest", "writing manifest"].map(|s| json!({"status": s}));
        let steps = [manifest, layer].into_iter().chain(progress).chain(rest);
        out.lines(steps.chain(std::iter::once_with(success)))
    }

    fn show(&self, body: &[u8], out: &mut Out) -> io::Result<()> {
        let wish = parse(body).unwrap_or_default();
        let model = wish["model"].as_str().unwrap_or_default();
        if full_name(model).is_none_or(|name| !self.names().contains(&name)) {
            let error = format!("model '{model}' not found");
            return out.json(404, &json!({"error": error}));
        }
        out.json(
            200,
            &json!({
                "modelfile": "FROM echo", "template": "{{ .Prompt }}", "details": details(), "modified_at": WHEN,
                "model_info": {"general.architecture": "echo", "echo.context_length": CONTEXT_LENGTH},
                "capabilities": ["completion", "embedding"],
            }),
        )
    }

    /// Answers with vectors of texts.
    fn embed(&self, dialect: Dialect, body: &[u8], out: &mut Out) -> io::Result<()> {
        let wish = match parse(body) {
            Ok(wish) => wish,
            Err(complaint) => return dialect.refuse(out, 400, &complaint),
        };
        let model = wish["model"].as_str().unwrap_or_default();
        if full_name(model).is_none_or(|name| !self.names().contains(&name)) {
            return dialect.refuse(out, 404, &format!("model '{model}' not found"));
        }
        out.json(200, &embed::answer(dialect, &wish, model))
    }

    fn talk(&self, dialect: Dialect, body: &[u8], out: &mut Out) -> io::Result<()> {
        let wish = match parse(body) {
            Ok(wish) => wish,
            Err(complaint) => return dialect.refuse(out, 400, &complaint),
        };
        let model = wish["model"].as_str().unwrap_or_default();
        let known = full_name(model).filter(|name| self.names().contains(name));
        let Some(name) = known else {
            return dialect.refuse(out, 404, &format!("model '{model}' not found"));
        };
        self.in_memory().insert(name);
        dialect.answer(out, &wish, model)
    }
}
