//! Stdin of a command in a sandbox, streamed into it as it is.
//!
//! One thread reads, and one sends what has been read meanwhile. A piece is answered once the command has taken it, so
//! that a slow command slows its writer. A piece whose answer is lost is not sent again: the command might get it twice.
//! Such a command is ended, since it would wait for ever for the rest, or take a part for the whole.

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
        let sent = send(&mut patient, &target.exec(&exec, ""), &reads);
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

/// Sends what is read to the exec at `path`, and then the end, until the command reads no more.
fn send(api: &mut ApiClient, path: &str, reads: &Receiver<Vec<u8>>) -> Result<(), Failure> {
    loop {
        // The reader is gone at the end of stdin, which an empty piece stands for.
        let mut piece = reads.recv().unwrap_or_default();
        let is_last = piece.is_empty();
        while piece.len() < MAX_PIECE_BYTES
            && let Ok(more) = reads.try_recv()
        {
            piece.extend_from_slice(&more);
        }
        if !send_piece(api, path, &piece)? || is_last {
            return Ok(());
        }
    }
}

/// Sends a piece to the exec at `path`. Whether the command takes more.
fn send_piece(api: &mut ApiClient, path: &str, piece: &[u8]) -> Result<bool, Failure> {
    let stdin = format!("{path}/stdin?eof={}", piece.is_empty());
    let mut is_running = false;
    loop {
        let body = Payload::Bytes(piece, "application/octet-stream");
        let answer = match api.exchange(&Method::POST, &stdin, &[], body) {
            Err(failure) if failure.exit == Exit::Unreachable && piece.is_empty() => {
                // The end may be sent twice.
                thread::sleep(RETRY_INTERVAL);
                continue;
            }
            Err(failure) if failure.exit == Exit::Unreachable => {
                let text = format!(
                    "{}\nThe command may have got what was sent last, or not.",
                    failure.message
                );
                return Err(Failure::new(failure.exit, text));
            }
            answer => answer?,
        };
        match answer.status().as_u16() {
            429 | 503 => thread::sleep(RETRY_INTERVAL),
            // After a restart of the orchestrator, a sandbox may not be known to run yet.
            409 if !is_running => {
                is_running = api.get::<Exec>(path).is_ok();
                if !is_running {
                    thread::sleep(RETRY_INTERVAL);
                }
            }
            // The command has closed its stdin, or has ended.
            404 | 409 | 410 => return Ok(false),
            _ => {
                let taken: StdinTaken = read_json(api.check_status(answer)?)?;
                return Ok(taken.bytes == piece.len() as u64);
            }
        }
    }
}
