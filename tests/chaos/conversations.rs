//! Sandboxes that stay among the jobs: conversations, each of which runs one command after the other in a sandbox, and
//! goes on in a new one where that has ended.
//!
//! Checked for every exec, whose id its client has made and repeats until it is answered:
//! - its command started once at most, whatever was repeated;
//! - what was read of its output is the beginning of what it prints, without a gap and without a repetition, although it
//!   was read in parts, each after the last event of the one before;
//! - of one that exited, that is all, and the exit code is its own; any other's sandbox has ended.

use crate::{
    support::{Api, Reply, uuid},
    test_bed::ms,
    witness::Witness,
};
use serde_json::{Value, json};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Time for one answer, across all faults.
const LIMIT: Duration = Duration::from_secs(150);
/// Execs in one sandbox.
const EXECS: usize = 12;

/// Exec, as its client saw it.
pub(crate) struct Record {
    id: String,
    lines: u64,
    code: u64,
    /// Output that was read.
    seen: String,
    /// End that was reported; `None` where its sandbox has ended.
    end: Option<Value>,
}

/// Client of sandboxes, whatever fails meanwhile.
pub(crate) struct Conversation<'a> {
    user: &'a Api,
    number: u64,
    records: Vec<Record>,
}

/// Runs commands in sandboxes until `is_over`; the records of all execs.
pub(crate) fn converse(user: &Api, number: u64, is_over: &AtomicBool) -> Vec<Record> {
    let mut conversation = Conversation {
        user,
        number,
        records: Vec::new(),
    };
    let mut round = 0;
    while !is_over.load(Ordering::SeqCst) {
        round += 1;
        let sandbox = conversation.create(round);
        for _ in 0..EXECS {
            if is_over.load(Ordering::SeqCst) || !conversation.exec(&sandbox) {
                break;
            }
        }
        conversation.delete(&sandbox);
    }
    conversation.records
}

/// Asks until there is an answer.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < LIMIT, "in {LIMIT:?} not: {what}");
        thread::sleep(ms(50));
    }
}

impl Conversation<'_> {
    fn call(&self, method: &str, path: &str, last: &str, body: &Value) -> Option<Reply> {
        let mut headers = vec![("Content-Type", "application/json")];
        if method == "GET" {
            headers.push(("Accept", "text/event-stream"));
        }
        if !last.is_empty() {
            headers.push(("Last-Event-ID", last));
        }
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let reply = self.user.try_call(method, path, &headers, body.as_bytes());
        reply.ok().filter(|reply| reply.status < 500)
    }

    /// Path of a sandbox that runs or has ended.
    fn create(&self, round: u64) -> String {
        let name = format!("chaos-{}-{round}", self.number);
        let path = format!("/v1/sandboxes/{name}");
        let wanted = json!({"name": name, "wait_seconds": 1});
        until("the sandbox is there", || {
            let created = self.call("POST", "/v1/sandboxes", "", &wanted)?;
            // Taken by an earlier try.
            assert!(
                [201, 409, 429].contains(&created.status),
                "{}",
                created.text()
            );
            (created.status != 429).then_some(())
        });
        until("the sandbox runs", || {
            let status = self.status(&path)?;
            ["running", "ended"].contains(&&*status).then_some(())
        });
        path
    }

    fn status(&self, path: &str) -> Option<String> {
        let reply = self.user.try_call("GET", path, &[], b"").ok();
        let reply = reply.filter(|reply| reply.status < 500)?;
        if reply.status == 404 {
            return Some("ended".to_owned());
        }
        Some(reply.json(200)["status"].as_str().unwrap().to_owned())
    }

    /// Runs a command; returns whether its sandbox goes on.
    fn exec(&mut self, sandbox: &str) -> bool {
        let number = self.records.len() as u64;
        let mut record = Record {
            id: uuid(),
            lines: 3 + number % 7,
            code: number % 5,
            seen: String::new(),
            end: None,
        };
        let Record {
            id, lines, code, ..
        } = &record;
        let script = format!(
            "echo {id} >>/witness/execs; n=0; while [ $n -lt {lines} ]; do n=$((n + 1)); echo \"{id} $n\"; usleep 100000; done; exit {code}"
        );
        let wanted = json!({"script": script, "exec_id": id, "background": true});
        let started = until("the exec starts", || {
            let reply = self.call("POST", &format!("{sandbox}/exec"), "", &wanted)?;
            match reply.status {
                200 | 201 => Some(true),
                410 => Some(false),
                409 | 429 => None,
                _ => panic!("{}", reply.text()),
            }
        });
        if started {
            self.read(sandbox, &mut record);
        }
        let goes_on = record.end.is_some();
        self.records.push(record);
        goes_on
    }

    /// Reads the output of an exec to its end, in parts.
    fn read(&self, sandbox: &str, record: &mut Record) {
        let path = format!("{sandbox}/execs/{}/logs?follow=false", record.id);
        let mut last = String::new();
        until("the exec ends", || {
            let reply = self.call("GET", &path, &last, &Value::Null)?;
            match reply.status {
                200 => {}
                410 => return Some(()),
                409 | 429 => return None,
                _ => panic!("{}", reply.text()),
            }
            for (id, name, data) in events(&reply.text()) {
                if !id.is_empty() {
                    last = id;
                }
                match name.as_str() {
                    "stdout" => record.seen += data["data"].as_str().unwrap(),
                    "gap" => record.seen += "[gap]",
                    "exit" if data["status"] != "running" => record.end = Some(data),
                    _ => {}
                }
            }
            record.end.is_some().then_some(())
        });
    }

    fn delete(&self, sandbox: &str) {
        until("the sandbox has ended", || {
            if self.status(sandbox)? == "ended" {
                return Some(());
            }
            self.call("DELETE", sandbox, "", &Value::Null);
            None
        });
    }
}

/// Events of a stream: id, name, data.
fn events(text: &str) -> Vec<(String, String, Value)> {
    let field = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    let event = |event: &str| {
        let data = serde_json::from_str(&field(event, "data:")).unwrap_or_default();
        (field(event, "id:"), field(event, "event:"), data)
    };
    text.split("\n\n").map(event).collect()
}

impl Record {
    fn check(&self, starts: usize) -> Result<(), &'static str> {
        let line = |n| format!("{} {n}\n", self.id);
        let whole: String = (1..=self.lines).map(line).collect();
        if starts > 1 {
            return Err("ran twice");
        }
        if !whole.starts_with(&self.seen) {
            return Err("has output that is not its own, or not once");
        }
        if starts == 0 && !self.seen.is_empty() {
            return Err("printed without a start");
        }
        let Some(end) = &self.end else {
            return Ok(());
        };
        match end["status"].as_str() {
            Some("lost") => Ok(()),
            // Its sandbox ended in the middle, which killed it.
            Some("exited") if end["exit_code"] == 137 => Ok(()),
            Some("exited") if end["exit_code"] != self.code => Err("has another exit code"),
            Some("exited") if self.seen != whole => Err("lost output"),
            Some("exited") => Ok(()),
            _ => Err("has no end"),
        }
    }
}

/// Errors in the records of conversations, and the number of execs that exited of all.
pub(crate) fn check(records: &[Record], witness: &Witness) -> (Vec<String>, [usize; 2]) {
    let starts = witness.execs();
    let mut wrong = Vec::new();
    for record in records {
        let count = starts.get(&record.id).copied().unwrap_or(0);
        if let Err(error) = record.check(count) {
            let Record { id, seen, end, .. } = record;
            wrong.push(format!("exec {id} {error}: {end:?} {seen:?}"));
        }
    }
    let exited = records.iter().filter(|record| {
        let end = record.end.as_ref();
        end.is_some_and(|end| end["status"] == "exited")
    });
    (wrong, [exited.count(), records.len()])
}
