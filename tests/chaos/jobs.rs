//! What a job of these tests does, and whether its record tells what it did.
//!
//! For every job is checked:
//! - it ended, and in its record is the result of an attempt that was really made;
//! - exit code and all of its output are those of that attempt's one command, which drew the id that
//!   stands in each line: nothing is missing, doubled or another command's;
//! - in each attempt the command began once at most. Podman may have been started more often: an
//!   attempt of which the command can't have begun (its request was never taken) is started again;
//! - a later attempt than that of the record may have begun, at a node that was offered it and whose answer
//!   was lost: it doesn't count;
//! - one with `max_attempts` 1 began once at most in all. It may end as lost, with a true part of its
//!   output; or with an error of the engine, and then it never began;
//! - any other has its true result.

use crate::witness::{Start, Witness};
use serde_json::{Value, json};

/// What the record keeps of a stream, in bytes.
const KEPT: usize = 256 * 1024;

/// What a job does.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Its number.
    pub(crate) number: u64,
    /// How many lines it prints; every third on stderr, too.
    pub(crate) lines: u64,
    /// Between two of them.
    pub(crate) pause_ms: u64,
    /// Numbers that it prints in a flood at the end.
    pub(crate) flood: u64,
    /// How it ends.
    pub(crate) code: i64,
    /// How often it may be tried.
    pub(crate) max_attempts: u64,
    /// Whether it waits to be let go before it ends.
    pub(crate) waits: bool,
}

impl Plan {
    /// The task.
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
             done\n{wait}\nseq 1 {flood}\necho {code} >>/witness/ended\nexit {code}"
        );
        json!({"script": script, "task_name": format!("chaos-{number}"), "max_attempts": max_attempts})
    }

    /// What is kept of what the command that drew `id` prints.
    fn output(&self, id: &str) -> [String; 2] {
        let line = |n| format!("{id} {n}\n");
        let mut out: String = (1..=self.lines).map(line).collect();
        let err = (1..=self.lines).filter(|n| n % 3 == 0).map(line).collect();
        for n in 1..=self.flood {
            if out.len() > KEPT {
                break;
            }
            out += &format!("{n}\n");
        }
        out.truncate(KEPT);
        [out, err]
    }

    /// What is wrong with the record of this job, in `/result`'s words.
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
        let begun = |attempt: u64| -> Vec<(&str, &Start)> {
            let of = starts.iter().filter(|start| start.attempt == attempt);
            of.flat_map(|start| start.begun.iter().map(move |id| (id.as_str(), start)))
                .collect()
        };
        for attempt in 1..=starts.last().map_or(0, |start| start.attempt) {
            if begun(attempt).len() > 1 {
                return Err(format!("attempt {attempt} ran twice"));
            }
        }
        if starts.iter().any(|start| start.attempt > self.max_attempts) {
            return Err("it was tried more often than it may be".to_owned());
        }
        let ran = begun(attempt).pop();
        let told = &job["result_object"];
        let texts = ["stdout", "stderr"].map(|stream| told[stream].as_str().unwrap_or_default());
        let Some(code) = told["exit_code"].as_i64() else {
            let whole = ran.map_or([const { String::new() }; 2], |(id, _)| self.output(id));
            let is_true = whole
                .iter()
                .zip(texts)
                .all(|(all, part)| all.starts_with(part));
            let never_began = ran.is_none();
            return match (job["status"].as_str(), told["error"]["type"].as_str()) {
                _ if self.max_attempts > 1 => Err("it has no result".to_owned()),
                _ if result["status"] != "failed" || attempt > 1 || !is_true => {
                    Err("its end is not told as it was".to_owned())
                }
                (Some("lost"), _) => Ok(()),
                (Some("failed"), Some("engine-error")) if never_began => Ok(()),
                _ => Err("it ended otherwise than a lost one may".to_owned()),
            };
        };
        let Some((id, start)) = ran else {
            return Err("its result comes from an attempt that never began".to_owned());
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
            return Err("its command did not come to its end".to_owned());
        }
        if self.output(id) != texts {
            return Err("its output is not whole".to_owned());
        }
        Ok(())
    }
}
