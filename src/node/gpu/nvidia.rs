//! GPUs of NVIDIA, from `nvidia-smi`, or else from the kernel module.

use super::{ToolOutput, Vendor, clean_value, features, run_tool};
use crate::{api::nodes::GpuDevice, environment, text::clean};
use std::{fs, path::Path, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// Reading all devices from the driver takes seconds.
const GENERATE_CDI_TIMEOUT: Duration = Duration::from_mins(1);

/// Fields of a query. The name is last, because it may contain a comma.
const FIELDS: &str = "uuid,memory.total,driver_version,pci.bus_id,compute_cap,name";
/// Fields for old drivers, which do not know the fifth.
const OLD_FIELDS: &str = "uuid,memory.total,driver_version,pci.bus_id,name";

/// Detects all GPUs.
pub(super) async fn detect(tool: &Path, proc: &Path) -> Vec<GpuDevice> {
    let mut fields = FIELDS;
    let mut answer = query(tool, fields).await;
    if matches!(&answer, ToolOutput::Failed(output) if output.contains("not a valid field")) {
        fields = OLD_FIELDS;
        answer = query(tool, fields).await;
    }
    match answer {
        ToolOutput::Printed(text) => parse(&text, fields),
        ToolOutput::Missing => read_from_kernel(proc),
        ToolOutput::Failed(output) if output.contains("No devices were found") => Vec::new(),
        ToolOutput::Failed(output) => {
            tracing::warn!(
                output,
                "nvidia-smi failed; a model server may not be able to use the GPUs; after a driver update, restart this machine"
            );
            read_from_kernel(proc)
        }
    }
}

/// Writes a description of the GPUs for podman (CDI) with `nvidia-ctk`. Fails with the last line of the tool's error.
pub async fn generate_cdi(tool: &Path, file: &Path) -> Result<(), String> {
    let mut command = Command::new(tool);
    command
        .args(["cdi", "generate"])
        .arg(format!("--output={}", file.display()))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    environment::scrub(&mut command);
    match timeout(GENERATE_CDI_TIMEOUT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let message = String::from_utf8_lossy(&output.stderr);
            let last = message.trim().lines().last();
            Err(clean(last.unwrap_or("it printed no error")))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "it did not end within {} s",
            GENERATE_CDI_TIMEOUT.as_secs()
        )),
    }
}

async fn query(tool: &Path, fields: &str) -> ToolOutput {
    let query = format!("--query-gpu={fields}");
    run_tool(tool, &[&query, "--format=csv,noheader,nounits"]).await
}

fn parse(text: &str, fields: &str) -> Vec<GpuDevice> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let devices = lines.filter_map(|line| {
        let device = parse_line(line, fields);
        if device.is_none() {
            let line: String = line.chars().take(200).collect();
            tracing::warn!(
                line,
                "unknown output of nvidia-smi; the GPU is not reported"
            );
        }
        device
    });
    devices.collect()
}

fn parse_line(line: &str, fields: &str) -> Option<GpuDevice> {
    let names: Vec<&str> = fields.split(',').collect();
    let values: Vec<&str> = line.splitn(names.len(), ',').collect();
    let of = |name: &str| {
        let at = names.iter().position(|known| *known == name)?;
        clean_value(values.get(at)?)
    };
    // Other lines have no such field.
    let uuid = of("uuid").filter(|uuid| uuid.starts_with("GPU-"))?;
    Some(GpuDevice {
        id: None,
        busy: false,
        vendor: Some(Vendor::Nvidia.as_str().to_owned()),
        model: of("name"),
        device_id: Some(uuid),
        // Absent where the GPU shares the machine's memory.
        vram_mb: of("memory.total").and_then(|mib| mib.parse().ok()),
        features: features([
            ("driver", of("driver_version")),
            ("pci", of("pci.bus_id")),
            ("compute_capability", of("compute_cap")),
            // The same by the name in the published contract.
            ("cuda_capability", of("compute_cap")),
        ]),
    })
}

/// Reads the GPUs from the kernel module, which has less detail.
fn read_from_kernel(proc: &Path) -> Vec<GpuDevice> {
    let cards = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut files: Vec<_> = cards.map(|card| card.path().join("information")).collect();
    files.sort();
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts.filter_map(|text| parse_information(&text)).collect()
}

fn parse_information(text: &str) -> Option<GpuDevice> {
    let of = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, found) = lines.find(|(known, _)| known.trim() == name)?;
        clean_value(found)
    };
    Some(GpuDevice {
        id: None,
        busy: false,
        vendor: Some(Vendor::Nvidia.as_str().to_owned()),
        model: Some(of("Model")?),
        device_id: of("GPU UUID"),
        vram_mb: None,
        features: features([("driver", of("GPU Firmware")), ("pci", of("Bus Location"))]),
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{assert_reportable, damaged, tool},
        *,
    };
    use proptest::prelude::*;

    const ONE: &str = include_str!("../../../tests/fixtures/gpu/nvidia-a10g.csv");
    const SEVERAL: &str = include_str!("../../../tests/fixtures/gpu/nvidia-3090-3070.csv");
    const SHARED: &str = include_str!("../../../tests/fixtures/gpu/nvidia-gb10.csv");
    const OLD: &str = include_str!("../../../tests/fixtures/gpu/nvidia-2080-old-driver.csv");
    const INFORMATION: &str = include_str!("../../../tests/fixtures/gpu/nvidia-3090-information");

    fn reported(devices: &[GpuDevice]) -> serde_json::Value {
        assert_reportable(devices);
        serde_json::to_value(devices).unwrap()
    }

    #[test]
    fn one_card_is_reported() {
        assert_eq!(
            reported(&parse(ONE, FIELDS)),
            serde_json::json!([{
                "vendor": "nvidia", "model": "NVIDIA A10G", "vram_mb": 23028,
                "device_id": "GPU-82523fd8-3897-f599-d088-ccd04ae45ec1",
                "features": {"driver": "535.104.05", "pci": "00000000:00:1E.0", "compute_capability": "8.6",
                    "cuda_capability": "8.6"},
            }])
        );
    }

    #[test]
    fn several_cards_are_reported() {
        let devices = parse(SEVERAL, FIELDS);
        assert_reportable(&devices);
        let reported: Vec<_> = devices
            .iter()
            .map(|device| (device.model.as_deref().unwrap(), device.vram_mb.unwrap()))
            .collect();
        assert_eq!(
            reported,
            [
                ("NVIDIA GeForce RTX 3090", 24576),
                ("NVIDIA GeForce RTX 3070", 8192)
            ]
        );
        assert_ne!(devices[0].device_id, devices[1].device_id);
    }

    #[test]
    fn shared_graphics_memory_is_not_reported() {
        let devices = parse(SHARED, FIELDS);
        assert_reportable(&devices);
        assert_eq!(devices[0].model.as_deref(), Some("NVIDIA GB10"));
        assert_eq!(devices[0].vram_mb, None);
    }

    #[test]
    fn kernel_module_reports_card_without_tool() {
        let device = parse_information(INFORMATION).unwrap();
        assert_reportable(std::slice::from_ref(&device));
        assert_eq!(device.model.as_deref(), Some("NVIDIA GeForce RTX 3090"));
        let uuid = "GPU-eaf23aa1-4d3d-596c-da66-b86b0e5db584";
        assert_eq!(device.device_id.as_deref(), Some(uuid));
    }

    #[tokio::test]
    async fn old_driver_is_queried_for_fewer_fields() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("answer"), OLD).unwrap();
        let script = format!(
            "case $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;; esac\nexec cat {}/answer",
            home.path().display()
        );
        let devices = detect(&tool(home.path(), &script), home.path()).await;
        assert_eq!(devices[0].model.as_deref(), Some("GeForce RTX 2080"));
        assert_eq!(devices[0].vram_mb, Some(7979));
    }

    #[tokio::test]
    async fn kernel_data_replaces_failed_tool() {
        let home = tempfile::tempdir().unwrap();
        let card = home.path().join("proc/0000:01:00.0");
        fs::create_dir_all(&card).unwrap();
        fs::write(card.join("information"), INFORMATION).unwrap();
        let proc = home.path().join("proc");
        let mismatch = "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18";
        for script in [mismatch, "echo 'No devices were found'; exit 6"] {
            let devices = detect(&tool(home.path(), script), &proc).await;
            assert_eq!(devices.len(), usize::from(script == mismatch), "{script}");
        }
        assert_eq!(detect(Path::new("/nonexistent/tool"), &proc).await.len(), 1);
        let nowhere = Path::new("/nonexistent");
        assert!(detect(nowhere, nowhere).await.is_empty());
    }

    #[test]
    fn nonsensical_values_are_omitted() {
        for text in [
            "",
            "\n\n",
            "NVIDIA-SMI has failed because it couldn't",
            "GPU",
            ",,,,,",
        ] {
            assert!(parse(text, FIELDS).is_empty(), "{text:?}");
        }
        let odd = "GPU-1, many, , [N/A], [Unknown Error], A card, with a comma";
        let device = parse(odd, FIELDS).remove(0);
        assert_eq!(device.model.as_deref(), Some("A card, with a comma"));
        assert_eq!((device.vram_mb, device.features), (None, None));
    }

    proptest! {
        #[test]
        fn any_output_gives_valid_report(text in any::<String>(), tail in any::<String>()) {
            assert_reportable(&parse(&format!("{text}\nGPU-{tail}"), FIELDS));
            assert_reportable(parse_information(&text).as_slice());
            assert_reportable(parse_information(&format!("Model: {text}\nGPU UUID:{tail}")).as_slice());
        }

        #[test]
        fn damaged_output_gives_valid_report(text in damaged(SEVERAL), known in damaged(INFORMATION)) {
            for fields in [FIELDS, OLD_FIELDS] {
                let devices = parse(&text, fields);
                assert_reportable(&devices);
                assert!(devices.len() <= text.lines().count());
            }
            assert_reportable(parse_information(&known).as_slice());
        }
    }
}
