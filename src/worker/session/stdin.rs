//! Stdin of an exec, as calls bring it.

use super::{
    protocol::{SessionReply, write_frame},
    server::Session,
};
use crate::api::ExecId;
use std::io;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
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
        let (mut bytes, mut buffer) = (0, Vec::new());
        let reply = loop {
            buffer.clear();
            buffer.reserve(READ_BYTES);
            let read = stream.read_buf(&mut buffer).await?;
            match &mut *stdin {
                None => break SessionReply::StdinClosed { bytes },
                Some(_) if read == 0 => break SessionReply::StdinTaken { bytes },
                Some(pipe) => tokio::select! {
                    written = pipe.write_all(&buffer) => match written {
                        Ok(()) => bytes += read as u64,
                        Err(_) => *stdin = None,
                    },
                    // A process that it has left may hold the pipe, and never read.
                    () = exec.ended() => *stdin = None,
                },
            }
        };
        if eof {
            *stdin = None;
        }
        write_frame(&mut stream, &reply).await
    }
}
