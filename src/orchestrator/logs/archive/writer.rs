//! Writer of a kept log, on a thread that may block.

use crate::{
    api::events::{FrameDecoder, InvalidLog},
    files::NewFile,
};
use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use zstd::stream::write::Encoder;

/// Level of compression: fast, and with little memory.
const LEVEL: i32 = 1;
/// Binary logarithm of the distance that the compression looks back. A reader needs as much memory.
const WINDOW_LOG: u32 = 18;

/// Failure to write a kept log.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the log can't be written")]
    Io(#[from] io::Error),
    #[error("the node sent something else than a log")]
    Invalid(#[from] InvalidLog),
    #[error("the node sent the log of another attempt")]
    OtherAttempt,
    #[error("the log ended early")]
    Incomplete,
}

/// Log that is being written. Until it is complete it has no name.
pub(super) struct ArchiveWriter {
    path: PathBuf,
    attempt: u32,
    encoder: Encoder<'static, NewFile>,
    decoder: FrameDecoder,
}

impl ArchiveWriter {
    pub(super) fn create(directory: &Path, path: PathBuf, attempt: u32) -> io::Result<Self> {
        let mut encoder = Encoder::new(NewFile::create(directory)?, LEVEL)?;
        encoder.window_log(WINDOW_LOG)?;
        // So that a damaged file is noticed.
        encoder.include_checksum(true)?;
        Ok(Self {
            path,
            attempt,
            encoder,
            decoder: FrameDecoder::default(),
        })
    }

    /// Checks and writes the next bytes from the node.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.decoder.push(bytes);
        while self.decoder.next_record()?.is_some() {}
        if self
            .decoder
            .attempt()
            .is_some_and(|attempt| attempt != self.attempt)
        {
            return Err(WriteError::OtherAttempt);
        }
        Ok(self.encoder.write_all(bytes)?)
    }

    /// Gives the file its name. Returns its size and that of the file that it replaced.
    pub(super) fn finish(self) -> Result<(u64, u64), WriteError> {
        if !self.decoder.is_complete() {
            return Err(WriteError::Incomplete);
        }
        let file = self.encoder.finish()?;
        let replaced = fs::metadata(&self.path).map_or(0, |file| file.len());
        Ok((file.persist(&self.path)?, replaced))
    }
}
