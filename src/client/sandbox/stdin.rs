//! Stdin of a command in a sandbox, streamed into it as it is.
//!
//! One thread reads, and one sends what has been read meanwhile. A piece is answered once the command has taken it, so
//! that a slow command slows its writer. A piece whose answer is lost is not sent again: the command might get it twice.

use super::target::Target;
use crate::{
    api::sandboxes::exec::StdinTaken,
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
use std::{io, sync::mpsc::Receiver, thread, time::Duration};

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
pub(super) fn stream(api: ApiClient, target: Target, exec: String) {
    let reads = read_ahead();
    thread::spawn(move || {
        let mut api = api.with_patience(TAKE_TIMEOUT);
        if let Err(failure) = send(&mut api, &target.exec(&exec, "/stdin"), &reads) {
            note(&format!(
                "stdin is not passed on any more: {}",
                failure.message
            ));
        }
        release();
    });
}

/// Sends what is read, and then the end, until the command reads no more.
fn send(api: &mut ApiClient, path: &str, reads: &Receiver<Vec<u8>>) -> Result<(), Failure> {
    loop {
        // The reader is gone at the end of stdin.
        let mut piece = reads.recv().unwrap_or_default();
        let is_last = piece.is_empty();
        while piece.len() < MAX_PIECE_BYTES
            && let Ok(more) = reads.try_recv()
        {
            piece.extend_from_slice(&more);
        }
        let path = format!("{path}?eof={is_last}");
        if !send_piece(api, &path, &piece)? || is_last {
            return Ok(());
        }
    }
}

/// Sends a piece. Whether the command takes more.
fn send_piece(api: &mut ApiClient, path: &str, piece: &[u8]) -> Result<bool, Failure> {
    loop {
        let body = Payload::Bytes(piece, "application/octet-stream");
        let answer = match api.exchange(&Method::POST, path, &[], body) {
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
            // The command has closed its stdin, or has ended.
            404 | 409 | 410 => return Ok(false),
            _ => {
                let taken: StdinTaken = read_json(api.check_status(answer)?)?;
                return Ok(taken.bytes == piece.len() as u64);
            }
        }
    }
}
