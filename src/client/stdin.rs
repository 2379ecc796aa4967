//! Stdin of `cynode run -i`, streamed into the command as it is.
//!
//! One thread reads, and one sends what has been read meanwhile, so that a fast pipe goes in large pieces and a typed
//! line at once. A piece is sent again until it was received: its offset says which one it is. A command that reads no
//! more, or has ended, is no error: as with a pipe of a shell, the writer into this process learns it.

use super::{
    api_client::{ApiClient, Payload, read_json, read_problem},
    paths,
    print::{clean, note},
};
use crate::{
    api::{jobs::stdin::MAX_PIECE_BYTES, problem::ProblemKind, tasks::StdinAnswer},
    backoff::Backoff,
    exit::{Exit, Failure},
};
use http::Method;
use std::{
    fs::File,
    io::{self, Read as _},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// Bytes that are read at a time.
const READ_BYTES: usize = 64 * 1024;
/// Reads that may wait until they are sent.
const MAX_WAITING_READS: usize = 2 * MAX_PIECE_BYTES / READ_BYTES;
/// Backoff between two attempts to send a piece.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Streams the stdin of this process into a task, in the background.
pub(super) fn stream(api: ApiClient, task: String) {
    let reads = read_ahead();
    thread::spawn(move || {
        if let Err(reason) = send(api, &task, &reads) {
            note(&format!("stdin is not passed on any more: {reason}"));
        }
        release();
    });
}

/// Reads stdin in the background. The channel ends where stdin does.
pub(super) fn read_ahead() -> Receiver<Vec<u8>> {
    let (sender, reads) = sync_channel(MAX_WAITING_READS);
    thread::spawn(move || read(&sender));
    reads
}

/// Reads stdin to its end, or until nothing more is sent.
fn read(sender: &SyncSender<Vec<u8>>) {
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) if sender.send(buffer[..n].to_vec()).is_ok() => {}
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return note(&format!("stdin can't be read: {error}; it ends here")),
        }
    }
}

/// Sends what is read, and then the end, until the command reads no more.
fn send(mut api: ApiClient, task: &str, reads: &Receiver<Vec<u8>>) -> Result<(), String> {
    let mut offset = 0;
    loop {
        // The reader is gone at the end of stdin.
        let mut piece = reads.recv().unwrap_or_default();
        let is_last = piece.is_empty();
        while piece.len() + READ_BYTES <= MAX_PIECE_BYTES
            && let Ok(more) = reads.try_recv()
        {
            piece.extend_from_slice(&more);
        }
        let path = format!(
            "{}?offset={offset}&eof={is_last}",
            paths::task(task, "/stdin")
        );
        match send_piece(&mut api, &path, &piece)? {
            Some(answer) if !answer.closed && !is_last => offset = answer.offset,
            _ => return Ok(()),
        }
    }
}

/// Answer to a piece.
enum PieceAnswer {
    /// It was received.
    Received(StdinAnswer),
    /// It is to be sent again.
    Again,
    /// The task or its stdin has ended.
    Ended,
}

/// Sends a piece until it was received; `None` where the task has ended.
fn send_piece(
    api: &mut ApiClient,
    path: &str,
    piece: &[u8],
) -> Result<Option<StdinAnswer>, String> {
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    loop {
        match send_once(api, path, piece) {
            Ok(PieceAnswer::Received(answer)) => return Ok(Some(answer)),
            Ok(PieceAnswer::Ended) => return Ok(None),
            Ok(PieceAnswer::Again) => thread::sleep(backoff.next_delay()),
            Err(failure) => return Err(failure.message),
        }
    }
}

fn send_once(api: &mut ApiClient, path: &str, piece: &[u8]) -> Result<PieceAnswer, Failure> {
    let body = Payload::Bytes(piece, "application/octet-stream");
    let mut answer = match api.exchange(&Method::POST, path, &[], body) {
        Err(failure) if failure.exit == Exit::Unreachable => return Ok(PieceAnswer::Again),
        sent => sent?,
    };
    match answer.status().as_u16() {
        429 | 502..=504 => return Ok(PieceAnswer::Again),
        409 => {}
        _ => return read_json(api.check_status(answer)?).map(PieceAnswer::Received),
    }
    match read_problem(answer.body_mut()) {
        Some(problem) if problem.slug() == ProblemKind::JobAlreadyFinished.slug() => {
            Ok(PieceAnswer::Ended)
        }
        problem => {
            let detail = problem.map(|problem| clean(&problem.detail));
            Err(Failure::new(Exit::Conflict, detail.unwrap_or_default()))
        }
    }
}

/// Gives the pipe up, so that its writer learns that nobody reads.
pub(super) fn release() {
    if let Ok(null) = File::open("/dev/null") {
        // Without it the writer only waits until this process ends.
        let _ = rustix::stdio::dup2_stdin(null);
    }
}
