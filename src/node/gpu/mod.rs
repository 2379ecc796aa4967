//! GPUs of this machine, and podman's arguments for them.
//!
//! | vendor | source | source where that fails |
//! |---|---|---|
//! | NVIDIA | `nvidia-smi --query-gpu` | `/proc/driver/nvidia/gpus` of its kernel module |
//! | AMD | `rocm-smi --json` | `/sys/class/drm` of its kernel module |
//!
//! A missing tool is not logged: most machines have neither. A tool that fails is, with its output. Values of tools and
//! files are checked and bounded before they go into a report.

mod amd;
mod cards;
mod nvidia;

pub use cards::candidates;
pub use nvidia::generate_cdi;

use crate::{
    api::nodes::{GpuDevice, MAX_DEVICES, MAX_TEXT_BYTES},
    engine::gpus,
    environment,
};
use std::{io, path::Path, process::Stdio, time::Duration};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

/// Time limit for a tool; `nvidia-smi` wakes GPUs up, one by one.
const TOOL_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum length of a tool's output, in bytes; the rest is not read.
const MAX_OUTPUT_BYTES: u64 = 1024 * 1024;

/// Vendor of a GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
}

impl Vendor {
    /// Display name.
    pub const fn display_name(self) -> &'static str {
        match self {
            Self::Nvidia => "NVIDIA",
            Self::Amd => "AMD",
        }
    }

    /// Name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nvidia => gpus::NVIDIA,
            Self::Amd => gpus::AMD,
        }
    }

    /// Whether a process that can open these device files can compute on GPUs of this vendor.
    pub fn is_usable_with(self, devices: &[String]) -> bool {
        let any = |is: fn(&str) -> bool| devices.iter().any(|path| is(path));
        match self {
            // Its other device files are for control and for displays.
            Self::Nvidia => any(|path| {
                let number = path.strip_prefix("/dev/nvidia");
                number.is_some_and(|n| n.parse::<u32>().is_ok())
            }),
            Self::Amd => {
                any(|path| path == "/dev/kfd") && any(|path| path.starts_with("/dev/dri/renderD"))
            }
        }
    }

    /// Podman's arguments that give a container all GPUs of this vendor.
    pub const fn podman_args(self, rootless: bool) -> &'static [&'static str] {
        // SELinux denies devices of the host to containers with a label.
        match self {
            Self::Nvidia => &[
                "--device=nvidia.com/gpu=all",
                "--security-opt=label=disable",
            ],
            // Access to /dev/kfd comes from the groups of the user.
            Self::Amd if rootless => &[
                "--device=/dev/kfd",
                "--device=/dev/dri",
                "--group-add=keep-groups",
                "--security-opt=label=disable",
            ],
            Self::Amd => &[
                "--device=/dev/kfd",
                "--device=/dev/dri",
                "--security-opt=label=disable",
            ],
        }
    }
}

/// Detects the GPUs. Never fails: a GPU that cannot be read is left out.
pub async fn detect() -> Vec<GpuDevice> {
    let (nvidia, amd) = tokio::join!(
        nvidia::detect(
            Path::new("nvidia-smi"),
            Path::new("/proc/driver/nvidia/gpus")
        ),
        amd::detect(
            Path::new("rocm-smi"),
            Path::new("/sys/class/drm"),
            Path::new("/opt/rocm/.info/version"),
        ),
    );
    let mut devices = nvidia;
    devices.extend(amd);
    devices.truncate(MAX_DEVICES);
    devices
}

/// Vendors whose GPUs a model server can use here.
pub fn usable_vendors(devices: &[GpuDevice]) -> Vec<Vendor> {
    let has = |vendor: Vendor| {
        let is_its = |device: &GpuDevice| device.vendor.as_deref() == Some(vendor.as_str());
        devices.iter().any(is_its)
    };
    // Many CPUs contain a GPU of AMD; only one with a compute driver is usable.
    let computes = |vendor| vendor != Vendor::Amd || Path::new("/dev/kfd").exists();
    [Vendor::Nvidia, Vendor::Amd]
        .into_iter()
        .filter(|&vendor| has(vendor) && computes(vendor))
        .collect()
}

/// Result of a tool.
enum ToolOutput {
    /// Output of a successful run.
    Printed(String),
    /// Failure, with the output.
    Failed(String),
    /// The tool is not installed.
    Missing,
}

/// Runs a tool, without this process's secrets in its environment.
async fn run_tool(program: &Path, arguments: &[&str]) -> ToolOutput {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // These tools print their errors on stdout; what is on stderr are warnings.
        .stderr(Stdio::null())
        .kill_on_drop(true);
    environment::scrub(&mut command);
    match timeout(TOOL_TIMEOUT, read_output(command)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => ToolOutput::Missing,
        Ok(Err(error)) => ToolOutput::Failed(error.to_string()),
        Err(_) => ToolOutput::Failed(format!("no answer within {} s", TOOL_TIMEOUT.as_secs())),
    }
}

async fn read_output(mut command: Command) -> io::Result<ToolOutput> {
    let mut child = command.spawn()?;
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_OUTPUT_BYTES)
            .read_to_end(&mut bytes)
            .await?;
    }
    let status = child.wait().await?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    Ok(if status.success() {
        ToolOutput::Printed(text)
    } else {
        let output: String = text.chars().take(500).collect();
        ToolOutput::Failed(format!("{output} ({status})"))
    })
}

/// A value without control characters, within the limit of a report. `None` where the tool does not know it.
fn clean_value(text: &str) -> Option<String> {
    let mut text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    let unknown = [
        "",
        "N/A",
        "[N/A]",
        "[Not Supported]",
        "[Unknown Error]",
        "[GPU requires reset]",
        "[Insufficient Permissions]",
    ];
    (!unknown.contains(&text.as_str())).then_some(text)
}

/// Known facts by name.
fn features<const N: usize>(facts: [(&str, Option<String>); N]) -> Option<serde_json::Value> {
    let facts: serde_json::Map<_, _> = facts
        .into_iter()
        .filter_map(|(name, fact)| Some((name.to_owned(), fact?.into())))
        .collect();
    (!facts.is_empty()).then(|| facts.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::nodes::CapabilityReport;
    use proptest::prelude::*;
    use std::{io::Write as _, path::PathBuf};

    /// Fails unless an orchestrator accepts a report with these.
    pub(super) fn assert_reportable(devices: &[GpuDevice]) {
        let report: CapabilityReport = serde_json::from_value(serde_json::json!({
            "version": 1, "reported_at": "2026-01-01T00:00:00Z", "node": {"node_slug": "box"},
            "platform": {"os": "linux", "arch": "amd64"}, "compute": {"cpu_cores": 2, "ram_mb": 1},
            "gpu": {"present": true, "devices": devices},
        }))
        .unwrap();
        report.check("").unwrap();
    }

    /// Truncated output, or output with a few changed bytes.
    pub(super) fn damaged(answer: &'static str) -> impl Strategy<Value = String> {
        let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        (changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
            move |(changes, cut, whole)| {
                let mut bytes = Vec::from(answer);
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                if !whole {
                    bytes.truncate(cut.index(answer.len()));
                }
                String::from_utf8_lossy(&bytes).into_owned()
            },
        )
    }

    /// A tool that runs this script. A child writes it: if this process did, another child that is forked meanwhile would
    /// hold it open for writing, and it could not be executed.
    pub(super) fn tool(home: &Path, script: &str) -> PathBuf {
        let path = home.join("tool");
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("#!/bin/sh\n{script}\n");
        shell
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        assert!(shell.wait().unwrap().success());
        path
    }

    #[tokio::test]
    async fn failed_tool_is_quoted_missing_tool_skipped() {
        let home = tempfile::tempdir().unwrap();
        let failing = tool(home.path(), "echo its own words; exit 9");
        let ToolOutput::Failed(output) = run_tool(&failing, &[]).await else {
            panic!("it failed");
        };
        assert!(
            output.contains("its own words") && output.contains('9'),
            "{output}"
        );
        assert!(matches!(
            run_tool(&home.path().join("none"), &[]).await,
            ToolOutput::Missing
        ));
    }

    #[tokio::test]
    async fn endless_tool_output_is_cut_off() {
        let home = tempfile::tempdir().unwrap();
        let endless = tool(home.path(), "exec yes");
        // The tool ends with a broken pipe at the limit.
        assert!(matches!(
            run_tool(&endless, &[]).await,
            ToolOutput::Failed(_)
        ));
    }

    #[test]
    fn vendor_decides_which_devices_podman_passes() {
        let of = |vendor: &str| GpuDevice {
            vendor: Some(vendor.to_owned()),
            ..GpuDevice::default()
        };
        assert_eq!(
            usable_vendors(&[of("nvidia"), of("other")]),
            [Vendor::Nvidia]
        );
        assert_eq!(usable_vendors(&[]), []);
        assert_eq!(
            Vendor::Nvidia.podman_args(true)[0],
            "--device=nvidia.com/gpu=all"
        );
        let groups = "--group-add=keep-groups";
        assert!(Vendor::Amd.podman_args(true).contains(&groups));
        assert!(!Vendor::Amd.podman_args(false).contains(&groups));
    }

    #[test]
    fn gpu_needs_compute_device() {
        let can = |vendor: Vendor, devices: &[&str]| {
            let devices: Vec<String> = devices.iter().map(|&path| path.to_owned()).collect();
            vendor.is_usable_with(&devices)
        };
        assert!(can(Vendor::Nvidia, &["/dev/nvidiactl", "/dev/nvidia3"]));
        assert!(!can(Vendor::Nvidia, &["/dev/nvidiactl", "/dev/nvidia-uvm"]));
        assert!(can(Vendor::Amd, &["/dev/kfd", "/dev/dri/renderD128"]));
        assert!(!can(
            Vendor::Amd,
            &["/dev/dri/card0", "/dev/dri/renderD128"]
        ));
        assert!(!can(Vendor::Amd, &["/dev/kfd", "/dev/dri/card0"]));
        assert!(!can(Vendor::Amd, &["/dev/nvidia0"]));
    }

    proptest! {
        #[test]
        fn values_are_bounded(text in any::<String>()) {
            if let Some(value) = clean_value(&text) {
                prop_assert!(!value.is_empty() && value.len() <= MAX_TEXT_BYTES);
            }
        }
    }
}
