//! Stdin of an exec, as calls bring it.
//!
//! A call whose answer is lost may have been taken or not. So a caller may say how many bytes it has sent before
//! (`offset`), and send the same bytes again: of those, what the exec has got is skipped.

use super::{
    exec::RunningExec,
    protocol::{SessionReply, write_frame},
    server::Session,
};
use crate::api::ExecId;
use std::{io, sync::atomic::Ordering};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixStream, unix::pipe},
};

/// Bytes that are read at a time.
const READ_BYTES: usize = 64 * 1024;

impl Session {
    /// Writes what comes to the stdin of an exec. One call at a time does, so that their bytes don't mix.
    pub(super) async fn receive_stdin(
        &self,
        mut stream: UnixStream,
        exec_id: ExecId,
        eof: bool,
        offset: Option<u64>,
    ) -> io::Result<()> {
        let Some(exec) = self.running(exec_id) else {
            return write_frame(&mut stream, &self.absent(exec_id)).await;
        };
        let _use = self.enter();
        write_frame(&mut stream, &SessionReply::Done).await?;
        let mut stdin = tokio::select! {
            stdin = exec.stdin.lock() => stdin,
            () = exec.ended() => {
                return write_frame(&mut stream, &SessionReply::StdinClosed { bytes: 0 }).await;
            }
        };
        let received = exec.numbered_bytes.load(Ordering::Relaxed);
        let reply = match skipped_bytes(received, offset) {
            Ok(skip) => {
                write_stdin(&mut stream, &exec, &mut stdin, (offset.is_some(), skip)).await?
            }
            Err(Misplaced) => SessionReply::StdinMisplaced { received },
        };
        if eof {
            *stdin = None;
        }
        write_frame(&mut stream, &reply).await
    }
}

/// Call before which bytes are missing.
#[derive(PartialEq, Eq, Debug)]
struct Misplaced;

/// Bytes at the start of a call with this offset that an exec has got already, of all that numbered calls have sent.
fn skipped_bytes(received: u64, offset: Option<u64>) -> Result<u64, Misplaced> {
    offset.map_or(Ok(0), |offset| {
        received.checked_sub(offset).ok_or(Misplaced)
    })
}

/// Writes what comes on a stream to the stdin of an exec, without the first `skip` bytes, and counts the others where the
/// call is numbered. The reply counts all.
async fn write_stdin(
    stream: &mut UnixStream,
    exec: &RunningExec,
    stdin: &mut Option<pipe::Sender>,
    (is_numbered, mut skip): (bool, u64),
) -> io::Result<SessionReply> {
    let (mut bytes, mut buffer) = (0, Vec::<u8>::new());
    loop {
        buffer.clear();
        buffer.reserve(READ_BYTES);
        let read = stream.read_buf(&mut buffer).await?;
        let skipped = read.min(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= skipped as u64;
        match stdin {
            None => return Ok(SessionReply::StdinClosed { bytes }),
            Some(_) if read == 0 => {
                let offset = is_numbered.then(|| exec.numbered_bytes.load(Ordering::Relaxed));
                return Ok(SessionReply::StdinTaken { bytes, offset });
            }
            Some(pipe) => tokio::select! {
                written = pipe.write_all(&buffer[skipped..]) => match written {
                    Ok(()) => {
                        bytes += read as u64;
                        if is_numbered {
                            let new = (read - skipped) as u64;
                            exec.numbered_bytes.fetch_add(new, Ordering::Relaxed);
                        }
                    }
                    Err(_) => *stdin = None,
                },
                // A process that it has left may hold the pipe, and never read.
                () = exec.ended() => *stdin = None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_that_came_are_skipped() {
        for (received, offset, expected) in [
            (0, Some(0), Ok(0)),
            (6, Some(6), Ok(0)),
            (6, Some(2), Ok(4)),
            (6, Some(0), Ok(6)),
            (6, None, Ok(0)),
            (6, Some(7), Err(Misplaced)),
            (0, Some(u64::MAX), Err(Misplaced)),
        ] {
            let skipped = skipped_bytes(received, offset);
            assert_eq!(skipped, expected, "{received} {offset:?}");
        }
    }
}
