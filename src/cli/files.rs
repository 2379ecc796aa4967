//! Flags and arguments about files, artifacts and limits of tasks.

use super::{ClientFlags, TaskArgs, number, parse_size};
use crate::api::{
    jobs::resources::{Cpus, GpuRequest},
    size::ByteSize,
};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Files of a new task.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Files")]
pub struct FileFlags {
    /// Copy a file or directory into /workspace, to DEST in it; repeatable
    ///
    /// A file lands at its name, with its mode: `--upload train.py`. A directory lands at its name as well, `.` in
    /// /workspace itself: `--upload data`, `--upload .`; with DEST its content lands there: `--upload data:input`.
    /// Files that .gitignore or .cynodeignore in the directory name, and .git, are left out. Links are kept as links.
    /// A directory that has not changed since the last upload is not sent again.
    #[arg(long, value_name = "PATH[:DEST]")]
    pub upload: Vec<String>,
    /// Collect the files in /workspace that match, after the end; repeatable
    ///
    /// Files below /workspace/artifacts are always collected.
    #[arg(long, value_name = "GLOB")]
    pub artifact: Vec<String>,
    /// Collect at most this much in all, such as 500MiB [default: the node's limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_byte_size)]
    pub artifact_limit: Option<ByteSize>,
}

/// Limits and devices of a new task.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Limits")]
pub struct ResourceFlags {
    /// Give the command these GPUs for itself: all, a number, or ids such as 0,1
    #[arg(long, value_name = "all|N|ID,…", value_parser = parse_gpus)]
    pub gpus: Option<GpuRequest>,
    /// Let the command ask models, at http://localhost:11434 in its sandbox
    #[arg(long)]
    pub use_inference: bool,
    /// Limit the share of the processors, such as 2 or 0.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub cpus: Option<Cpus>,
    /// Limit memory, such as 512MiB or 4GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_byte_size)]
    pub memory: Option<ByteSize>,
    /// Limit the number of processes and threads
    #[arg(long, value_name = "N", value_parser = number::<u32, _>(1..))]
    pub pids: Option<u32>,
    /// Set the size of /dev/shm, such as 8GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_byte_size)]
    pub shm_size: Option<ByteSize>,
}

#[derive(Args, Debug)]
pub struct TaskArtifactsArgs {
    #[command(flatten)]
    pub task: TaskArgs,
    /// Download them below this directory, each at its path in /workspace
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub enum ArtifactsCommand {
    /// List your artifacts, newest first
    List(ArtifactListArgs),
    /// Upload a file, or a directory as a tar archive, and print its id
    Upload(ArtifactUploadArgs),
    /// Download an artifact
    Download(ArtifactDownloadArgs),
    /// Delete artifacts
    #[command(visible_alias = "rm")]
    Delete(ArtifactDeleteArgs),
}

#[derive(Args, Debug)]
pub struct ArtifactListArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Maximum number of artifacts, 1 to 200
    #[arg(long, default_value_t = 20, value_parser = number::<u32, _>(1..=200), value_name = "N")]
    pub limit: u32,
    /// Continue after the previous page: the cursor that it ended with
    #[arg(long)]
    pub cursor: Option<String>,
}

#[derive(Args, Debug)]
pub struct ArtifactUploadArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// File or directory
    pub path: PathBuf,
    /// Name of the artifact [default: the name of the file; of a directory, with .tar]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Args, Debug)]
pub struct ArtifactDownloadArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Id of the artifact
    pub id: String,
    /// File to write; - is stdout [default: the artifact's name, in this directory, where no file has it]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct ArtifactDeleteArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Ids of the artifacts
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
}

pub(super) fn parse_byte_size(text: &str) -> Result<ByteSize, String> {
    parse_size(text).map(ByteSize)
}

fn parse_cpus(text: &str) -> Result<Cpus, String> {
    let cpus = text.parse().ok().and_then(Cpus::new);
    cpus.ok_or_else(|| "expected a number from 0.01 to 1024, such as 2 or 0.5".to_owned())
}

/// Parses `all`, a number, or ids with commas between them; `0,` is the one with the id 0.
fn parse_gpus(text: &str) -> Result<GpuRequest, String> {
    if text == "all" {
        return Ok(GpuRequest::All);
    }
    if let Ok(count) = text.parse::<u32>() {
        return match count {
            0 => Err("expected 1 or more; the GPU with the id 0 is written 0,".to_owned()),
            count => Ok(GpuRequest::Count(count)),
        };
    }
    let ids: Vec<String> = text
        .trim_end_matches(',')
        .split(',')
        .map(str::to_owned)
        .collect();
    if ids.iter().any(String::is_empty) {
        return Err("expected all, a number, or ids such as 0,1".to_owned());
    }
    Ok(GpuRequest::Ids(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_all_number_or_ids() {
        let ids = |ids: &[&str]| {
            Ok(GpuRequest::Ids(
                ids.iter().map(|id| (*id).to_owned()).collect(),
            ))
        };
        assert_eq!(parse_gpus("all"), Ok(GpuRequest::All));
        assert_eq!(parse_gpus("2"), Ok(GpuRequest::Count(2)));
        assert_eq!(parse_gpus("0,1"), ids(&["0", "1"]));
        assert_eq!(parse_gpus("0,"), ids(&["0"]));
        assert_eq!(parse_gpus("GPU-1f"), ids(&["GPU-1f"]));
        for text in ["0", "", ",", "0,,1"] {
            assert!(parse_gpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_positive_numbers() {
        assert_eq!(parse_cpus("0.5"), Ok(Cpus::new(0.5).unwrap()));
        for text in ["0", "-1", "NaN", "inf", "x", ""] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }
}
