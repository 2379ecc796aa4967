//! Stdin of a command in a sandbox, streamed into it as it is.
//!
//! One thread reads, and one sends what has been read meanwhile. A piece is answered once the command has taken it, so
//! that a slow command slows its writer. A piece whose answer is lost, or is a 503, is sent again with the number of bytes
//! before it, by which the node writes it once. A node of an earlier release does not know such numbers, and the command
//! might get it twice: then the command is ended, since it would wait for ever for the rest, or take a part for the whole.

use super::{
    exec::{RECONNECT_INTERVAL, RECONNECT_TIMEOUT},
    signals,
    target::Target,
};
use crate::{
    api::sandboxes::exec::{Exec, StdinTaken},
    cli::ExecFlags,
    client::{
        api_client::{ApiClient, Payload, read_json},
        print::note,
        stdin::{read_ahead, release},
    },
    exit::{Exit, Failure},
};
use http::Method;
use rustix::fs::{FileType, fstat};
use std::{
    io,
    sync::mpsc::Receiver,
    thread,
    time::{Duration, Instant},
};
use ureq::Body;

/// Largest piece.
const MAX_PIECE_BYTES: usize = 1 << 20;
/// Time that a command may take for a piece.
const TAKE_TIMEOUT: Duration = Duration::from_hours(24);
/// Pause before a piece that was refused for now is sent again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Whether stdin is passed to the command: where it is asked for, and where it is a pipe or a file.
pub(super) fn is_passed(flags: &ExecFlags) -> bool {
    if flags.interactive || flags.no_stdin {
        return flags.interactive;
    }
    let kind = fstat(io::stdin()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(
        kind,
        Ok(FileType::Fifo | FileType::Socket | FileType::RegularFile)
    )
}

/// Streams the stdin of this process into a command, in the background.
pub(super) fn stream(mut api: ApiClient, target: Target, exec: String) {
    let reads = read_ahead();
    thread::spawn(move || {
        let mut patient = api.with_patience(TAKE_TIMEOUT);
        let path = target.exec(&exec, "");
        let mut upload = Upload {
            api: &mut patient,
            path: &path,
            offset: 0,
            is_numbered: false,
        };
        let sent = upload.run(&reads);
        release();
        if let Err(failure) = sent {
            note(&format!(
                "stdin is not passed on any more: {}\nThe command is ended, since its input is incomplete.",
                failure.message
            ));
            end(&mut api, &target, &exec);
        }
    });
}

/// Ends a command whose input is incomplete, as soon as it can be reached. This process ends with it.
fn end(api: &mut ApiClient, target: &Target, exec: &str) {
    let began = Instant::now();
    while signals::send(api, target, exec, "TERM").is_err() && began.elapsed() < RECONNECT_TIMEOUT {
        thread::sleep(RECONNECT_INTERVAL);
    }
}

/// Stdin on its way to an exec.
struct Upload<'a> {
    api: &'a mut ApiClient,
    /// Path of the exec.
    path: &'a str,
    /// Bytes that the exec has got.
    offset: u64,
    /// Whether its node has answered with a number of bytes: a piece that is sent again is not written twice then. A node
    /// of an earlier release does not.
    is_numbered: bool,
}

impl Upload<'_> {
    /// Sends what is read, and then the end, until the command reads no more.
    fn run(&mut self, reads: &Receiver<Vec<u8>>) -> Result<(), Failure> {
        loop {
            // The reader is gone at the end of stdin, which an empty piece stands for.
            let mut piece = reads.recv().unwrap_or_default();
            let is_last = piece.is_empty();
            while piece.len() < MAX_PIECE_BYTES
                && let Ok(more) = reads.try_recv()
            {
                piece.extend_from_slice(&more);
            }
            if !self.send(&piece)? || is_last {
                return Ok(());
            }
        }
    }

    /// Sends a piece. Whether the command takes more.
    fn send(&mut self, piece: &[u8]) -> Result<bool, Failure> {
        let mut is_running = false;
        loop {
            let answer = match self.post(piece, piece.is_empty()) {
                Err(failure) if failure.exit == Exit::Unreachable => {
                    self.ensure_repeatable(piece, &failure.message)?;
                    thread::sleep(RETRY_INTERVAL);
                    continue;
                }
                answer => answer?,
            };
            match answer.status().as_u16() {
                429 => thread::sleep(RETRY_INTERVAL),
                // The node may have got it before it fell silent.
                503 => {
                    self.ensure_repeatable(piece, "The node of the sandbox did not answer.")?;
                    thread::sleep(RETRY_INTERVAL);
                }
                // After a restart of the orchestrator, a sandbox may not be known to run yet.
                409 if !is_running => {
                    is_running = self.api.get::<Exec>(self.path).is_ok();
                    if !is_running {
                        thread::sleep(RETRY_INTERVAL);
                    }
                }
                // The command has closed its stdin, or has ended.
                404 | 409 | 410 => return Ok(false),
                _ => {
                    let taken: StdinTaken = read_json(self.api.check_status(answer)?)?;
                    self.is_numbered = taken.offset.is_some();
                    self.offset += piece.len() as u64;
                    return Ok(taken.bytes == piece.len() as u64);
                }
            }
        }
    }

    /// Fails where a piece that the command may have got can't be sent again. The end may always be.
    fn ensure_repeatable(&mut self, piece: &[u8], reason: &str) -> Result<(), Failure> {
        if piece.is_empty() || self.is_numbered || self.ask_numbered() {
            return Ok(());
        }
        let text = format!("{reason}\nThe command may have got what was sent last, or not.");
        Err(Failure::new(Exit::Unreachable, text))
    }

    /// Finds out whether the node numbers bytes, by an empty piece, which changes nothing. False also where no answer
    /// comes.
    fn ask_numbered(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < RECONNECT_TIMEOUT {
            if let Ok(answer) = self.post(&[], false) {
                match answer.status().as_u16() {
                    // Whether the exec is gone shows in the answer to the piece itself.
                    404 | 410 => return true,
                    200 => {
                        let taken = read_json::<StdinTaken>(answer);
                        self.is_numbered = taken.is_ok_and(|taken| taken.offset.is_some());
                        return self.is_numbered;
                    }
                    _ => {}
                }
            }
            thread::sleep(RETRY_INTERVAL);
        }
        false
    }

    fn post(&mut self, piece: &[u8], is_last: bool) -> Result<http::Response<Body>, Failure> {
        let (path, offset) = (self.path, self.offset);
        let path = format!("{path}/stdin?offset={offset}&eof={is_last}");
        let body = Payload::Bytes(piece, "application/octet-stream");
        self.api.exchange(&Method::POST, &path, &[], body)
    }
}
