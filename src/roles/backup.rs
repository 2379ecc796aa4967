//! `cynode backup`: a copy of the database, for a user with access to the orchestrator's data directory.

use super::data_dir_path;
use crate::{
    cli::{BackupArgs, OutputFormat},
    exit::{Exit, Failure},
    store::{self, BackupError},
    terminal::{print_json, print_line, print_note},
};
use serde_json::json;

/// Runs `cynode backup`.
pub fn backup(args: &BackupArgs) -> Result<(), Failure> {
    let data_dir = std::path::absolute(data_dir_path(&args.state)?)?;
    let copied = store::backup(&data_dir.join("cynode.db"), &args.file)?;
    let file = args.file.display();
    match args.output {
        OutputFormat::Json => print_json(&json!({
            "file": std::path::absolute(&args.file)?,
            "bytes": copied.bytes,
            "schema": copied.schema,
        })),
        OutputFormat::Text => {
            print_line(&format!(
                "{file}: {} bytes, schema {}",
                copied.bytes, copied.schema
            ))?;
            print_note(&format!(
                "keep {} with it; a restore needs both, and contents/ and logs/ for artifacts and whole logs",
                data_dir.join("keys").display()
            ));
            Ok(())
        }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        let exit = match error {
            BackupError::NoDatabase(_) | BackupError::NoDirectory(_) => Exit::NotFound,
            BackupError::Exists(_) => Exit::Conflict,
            _ => Exit::Internal,
        };
        Self::chain(exit, &error)
    }
}
