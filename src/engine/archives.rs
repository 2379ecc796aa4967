//! Images as OCI archives: saved on one machine, loaded on another.
//!
//! Both may take minutes, and do not count as short calls.

use super::{
    Engine, EngineError, Program,
    call::{call, message_or_status, read_stderr_tail},
    process::Process,
};
use rustix::process::geteuid;
use std::{env, fs::File, io, path::Path, process::Stdio, time::Duration};

/// Time for podman to say whether it has an image.
const EXISTS_TIMEOUT: Duration = Duration::from_secs(30);
const FORMAT: &str = "--format=oci-archive";

/// Writes an image of this machine to `archive`. Podman writes into a pipe of ours, so that it ends when this process
/// does, and the archive needs no name. Fails where podman does not have the image.
pub async fn save_image(podman: &Path, image: &str, archive: File) -> Result<(), EngineError> {
    let program = Program::plain(podman);
    call(
        &program,
        &["image", "exists", "--", image],
        EXISTS_TIMEOUT,
        |_| (),
    )
    .await
    .map_err(|error| not_here(image, error))?;
    let mut command = program.command();
    command
        .args(["save", "--quiet", FORMAT, "--", image])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = Process::start(&program, &mut command)?;
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let mut archive = tokio::fs::File::from_std(archive);
    let write = async {
        if let Some(mut stdout) = stdout {
            tokio::io::copy(&mut stdout, &mut archive).await?;
        }
        archive.sync_all().await
    };
    let (written, message) = tokio::join!(write, read_stderr_tail(stderr));
    if written.is_err() {
        process.terminate().await;
    }
    written?;
    let status = process.wait().await?;
    if status.success() {
        return Ok(());
    }
    Err(EngineError::Failed {
        call: "save".to_owned(),
        message: message_or_status(message, status),
    })
}

/// Error of podman about an image that it does not have: it prints nothing then.
fn not_here(image: &str, error: EngineError) -> EngineError {
    match error {
        EngineError::Failed { .. } => {
            let text = format!(
                "{image} is not an image of this machine; see podman images, as this user, and podman build"
            );
            io::Error::new(io::ErrorKind::NotFound, text).into()
        }
        error => error,
    }
}

impl Engine {
    /// Loads the image of an archive. What it may be called is for the caller to check before. Podman unpacks it in
    /// `temp_dir`, and leaves it there when it is ended.
    pub async fn load_archive(
        &self,
        archive: &Path,
        temp_dir: &Path,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let archive = archive.to_str().ok_or_else(|| {
            let text = "a path of the data directory is not UTF-8; choose another --data-dir";
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let arguments = ["load", "--quiet", "--input", archive];
        let program = self.program_in(temp_dir);
        call(&program, &arguments, limit, |_| ()).await.map(drop)
    }

    /// Podman with its temporary files in this directory, where that is possible.
    pub(super) fn program_in(&self, temp_dir: &Path) -> Program {
        if self.info.rootless && !has_runtime_dir() {
            // Podman would look for its own state there, too.
            self.program.clone()
        } else {
            self.program.with_temp_dir(temp_dir)
        }
    }
}

/// Whether this user has a directory for what lasts until its last logout.
fn has_runtime_dir() -> bool {
    let usual = format!("/run/user/{}", geteuid().as_raw());
    env::var_os("XDG_RUNTIME_DIR").is_some() || Path::new(&usual).is_dir()
}
