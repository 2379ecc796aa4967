//! A client of the User API, and a connection of the least possible cost.

use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
};

/// A user who is logged in.
pub struct Api {
    agent: ureq::Agent,
    pub gateway: SocketAddr,
    pub token: String,
}

impl Api {
    /// Logs the admin in.
    pub fn log_in(gateway: SocketAddr, password: &str) -> Self {
        let agent = ureq::Agent::new_with_defaults();
        let body = json!({"handle": "admin", "password": password});
        let mut api = Self {
            agent,
            gateway,
            token: String::new(),
        };
        let login = api.post("/v1/auth/login", &body);
        api.token = login["access_token"].as_str().unwrap().to_owned();
        api
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    pub fn post(&self, path: &str, body: &Value) -> Value {
        let request = self.agent.post(self.url(path));
        let mut answer = request
            .header("authorization", self.bearer())
            .header("content-type", "application/json")
            .send(body.to_string())
            .unwrap();
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    }

    /// Reads a document, or a stream to its end.
    pub fn get(&self, path: &str) -> String {
        let request = self.agent.get(self.url(path));
        let answer = request.header("authorization", self.bearer()).call();
        let mut text = String::new();
        let mut reader = answer.unwrap().into_body().into_reader();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    pub fn delete(&self, path: &str) {
        let request = self.agent.delete(self.url(path));
        request
            .header("authorization", self.bearer())
            .call()
            .unwrap();
    }

    /// Sends a file as a body.
    pub fn put_file(&self, path: &str, file: &Path) {
        let request = self.agent.put(self.url(path));
        let request = request.header("authorization", self.bearer());
        request.send(File::open(file).unwrap()).unwrap();
    }

    /// Reads an answer into a file, and syncs it.
    pub fn get_file(&self, path: &str, file: &Path) {
        let request = self.agent.get(self.url(path));
        let answer = request.header("authorization", self.bearer()).call();
        let mut file = File::create(file).unwrap();
        io::copy(&mut answer.unwrap().into_body().into_reader(), &mut file).unwrap();
        file.sync_all().unwrap();
    }

    /// Creates a task that runs a command; its id.
    pub fn create(&self, command: &[&str]) -> String {
        let task = self.post("/v1/tasks", &json!({"command": command}));
        task["id"].as_str().unwrap().to_owned()
    }

    /// Follows the log of a task to its end.
    pub fn wait_completed(&self, task: &str) {
        let log = self.get(&format!("/v1/tasks/{task}/logs?follow=true"));
        assert!(log.contains("\"status\":\"completed\""), "{log}");
    }

    /// Runs `true` as a task.
    pub fn run_true(&self) {
        self.wait_completed(&self.create(&["true"]));
    }

    /// Creates so many tasks that run `true`, and waits for all of them.
    pub fn run_many(&self, count: usize) {
        let tasks: Vec<_> = (0..count).map(|_| self.create(&["true"])).collect();
        for task in tasks {
            self.wait_completed(&task);
        }
    }

    pub fn node(&self, slug: &str) -> Value {
        serde_json::from_str(&self.get(&format!("/v1/nodes/{slug}"))).unwrap()
    }
}

/// A kept connection that sends texts and reads answers with a length.
pub struct Connection {
    reader: BufReader<TcpStream>,
    address: SocketAddr,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            reader: BufReader::new(stream),
            address,
        }
    }

    /// Status and body of an answer. `headers` are whole lines.
    pub fn call(&mut self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let (host, length) = (self.address, body.len());
        let kind = if body.is_empty() {
            ""
        } else {
            "content-type: application/json\r\n"
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n{kind}{headers}\r\n{body}"
        );
        self.reader.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            self.reader.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap();
            }
            if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }
}

/// Header line of a user's token.
pub fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}
