//! Jobs of these tests, and the check of their records against the witness.
//!
//! Checked for every job:
//! - the job ended, and its record has the result of an attempt that was made;
//! - exit code and output are those of that attempt's one command, complete: each line has the random id of
//!   the command;
//! - in each attempt the command started once at most. Podman may have been started more often, since an
//!   attempt whose request was never taken is started again;
//! - a later attempt than that of the record may have started, at a node whose answer to an offer was lost;
//! - a job with `max_attempts` 1 started once at most in all. It may end as lost, with a part of its output, or
//!   with an engine error if it never started;
//! - any other job has its complete result;
//! - a job with an exit code has its one artifact: the file that it got, and the id of its command.

use crate::{
    support::Api,
    witness::{Start, Witness},
};
use serde_json::{Value, json};

/// Script of a job.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Number in its name.
    pub(crate) number: u64,
    /// Number of lines; every third goes to stderr, too.
    pub(crate) lines: u64,
    /// Pause between two lines.
    pub(crate) pause_ms: u64,
    /// Count of numbers printed at the end.
    pub(crate) flood: u64,
    /// Exit code.
    pub(crate) code: i64,
    /// Maximum attempts.
    pub(crate) max_attempts: u64,
    /// Whether it waits for its release before it ends.
    pub(crate) waits: bool,
}

impl Plan {
    /// Body of the request that creates it.
    pub(crate) fn task(&self) -> Value {
        let Self {
            number,
            lines,
            pause_ms,
            flood,
            code,
            max_attempts,
            waits,
        } = self;
        let pause = pause_ms * 1000;
        let wait = if *waits {
            "until [ -e /witness/go ]; do usleep 20000; done"
        } else {
            ":"
        };
        let script = format!(
            "id=$(cat /proc/sys/kernel/random/uuid)\necho $id >>/witness/begun\nn=0\n\
             while [ $n -lt {lines} ]; do\n\
             n=$((n + 1)); echo \"$id $n\"; [ $((n % 3)) -ne 0 ] || echo \"$id $n\" >&2; usleep {pause}\n\
             done\n{wait}\nseq 1 {flood}\n{{ cat in/file; echo $id; }} >artifacts/out\n\
             echo {code} >>/witness/ended\nexit {code}"
        );
        json!({
            "script": script,
            "task_name": format!("chaos-{number}"),
            "max_attempts": max_attempts,
            "files": [{"path": "in/file", "content": self.file()}],
        })
    }

    /// Content of the file that it gets: some pages, and its own.
    fn file(&self) -> String {
        format!("input of {}\n", self.number).repeat(1000)
    }

    /// Checks the artifacts of the task: the file that it got, with the id of the command whose result is recorded.
    pub(crate) fn check_artifacts(&self, api: &Api, result: &Value) -> Result<(), String> {
        let recorded = &result["jobs"][0]["result_object"];
        if recorded["exit_code"].is_null() {
            return Ok(());
        }
        let task = result["task_id"].as_str().unwrap_or_default();
        let listed = api.get(&format!("/v1/tasks/{task}/artifacts")).json(200);
        let [artifact] = &listed["artifacts"].as_array().unwrap()[..] else {
            return Err(format!(
                "task {task} has not its one artifact: {listed} {recorded}"
            ));
        };
        let id = artifact["artifact_id"].as_str().unwrap();
        let content = api.get(&format!("/v1/artifacts/{id}"));
        let printed = recorded["stdout"].as_str().unwrap_or_default();
        let command = printed.split(' ').next().unwrap_or_default();
        let expected = format!("{}{command}\n", self.file());
        if artifact["name"] != "artifacts/out" || content.text() != expected {
            return Err(format!(
                "the artifact of task {task} is another one: {artifact}"
            ));
        }
        Ok(())
    }

    /// Output of the command with this id.
    fn output(&self, id: &str) -> [String; 2] {
        let line = |n| format!("{id} {n}\n");
        let mut out: String = (1..=self.lines).map(line).collect();
        let err = (1..=self.lines).filter(|n| n % 3 == 0).map(line).collect();
        for n in 1..=self.flood {
            out += &format!("{n}\n");
        }
        [out, err]
    }

    /// Checks the record of this job, as `/result` has it.
    pub(crate) fn check(&self, result: &Value, witness: &Witness) -> Result<(), String> {
        let job = &result["jobs"][0];
        let starts = witness.starts(job["id"].as_str().unwrap_or_default());
        self.check_record(result, job, &starts).map_err(|wrong| {
            let seen: String = starts.iter().map(|start| format!("  {start}\n")).collect();
            format!("{wrong}\n  {self:?}\n  {job}\n{seen}")
        })
    }

    fn check_record(&self, result: &Value, job: &Value, starts: &[Start]) -> Result<(), String> {
        let attempt = job["attempt"].as_u64().unwrap_or(0);
        let started = |attempt: u64| -> Vec<(&str, &Start)> {
            let of = starts.iter().filter(|start| start.attempt == attempt);
            of.flat_map(|start| start.started.iter().map(move |id| (id.as_str(), start)))
                .collect()
        };
        for attempt in 1..=starts.last().map_or(0, |start| start.attempt) {
            if started(attempt).len() > 1 {
                return Err(format!("attempt {attempt} ran twice"));
            }
        }
        if starts.iter().any(|start| start.attempt > self.max_attempts) {
            return Err("it has more attempts than allowed".to_owned());
        }
        let ran = started(attempt).pop();
        let recorded = &job["result_object"];
        let texts =
            ["stdout", "stderr"].map(|stream| recorded[stream].as_str().unwrap_or_default());
        let Some(code) = recorded["exit_code"].as_i64() else {
            let whole = ran.map_or([const { String::new() }; 2], |(id, _)| self.output(id));
            let is_true = whole
                .iter()
                .zip(texts)
                .all(|(all, part)| all.starts_with(part));
            let never_began = ran.is_none();
            return match (job["status"].as_str(), recorded["error"]["type"].as_str()) {
                _ if self.max_attempts > 1 => Err("it has no result".to_owned()),
                _ if result["status"] != "failed" || attempt > 1 || !is_true => {
                    Err("its record has another end".to_owned())
                }
                (Some("lost"), _) => Ok(()),
                (Some("failed"), Some("engine-error")) if never_began => Ok(()),
                _ => Err("it ended as no lost job may".to_owned()),
            };
        };
        let Some((id, start)) = ran else {
            return Err("its result is of an attempt that never started".to_owned());
        };
        let status = if self.code == 0 {
            "completed"
        } else {
            "failed"
        };
        if (code, &job["status"], &result["status"]) != (self.code, &json!(status), &json!(status))
        {
            return Err(format!("it should be {status} with {}", self.code));
        }
        if start.ended != [self.code.to_string()] {
            return Err("its command did not end".to_owned());
        }
        let mut whole = self.output(id).into_iter().zip(texts);
        if !whole.all(|(whole, kept)| is_kept_of(kept, &whole)) {
            return Err("its output is incomplete".to_owned());
        }
        Ok(())
    }
}

/// Whether a record of output is the whole of it, or its beginning and its end with the number of the bytes between.
fn is_kept_of(kept: &str, whole: &str) -> bool {
    let Some((head, rest)) = kept.split_once("\n[... ") else {
        return kept == whole;
    };
    let Some((omitted, rest)) = rest.split_once(" bytes omitted") else {
        return false;
    };
    let tail = rest.split_once("]\n").map_or("", |(_, tail)| tail);
    whole.starts_with(head)
        && whole.ends_with(tail)
        && omitted.parse() == Ok(whole.len() - head.len() - tail.len())
}
