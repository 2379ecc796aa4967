//! GPUs of AMD, from `rocm-smi`, or else from the kernel module.

use super::{ToolOutput, Vendor, clean_value, features, run_tool};
use crate::api::nodes::GpuDevice;
use serde_json::{Map, Value};
use std::{fs, path::Path};

/// PCI vendor id of AMD.
const PCI_VENDOR: &str = "0x1002";

/// Detects all GPUs. `version_file` holds the version of ROCm, where that is installed.
pub(super) async fn detect(tool: &Path, drm: &Path, version_file: &Path) -> Vec<GpuDevice> {
    let arguments = [
        "--showproductname",
        "--showuniqueid",
        "--showmeminfo",
        "vram",
        "--json",
    ];
    let found = match run_tool(tool, &arguments).await {
        ToolOutput::Printed(text) => parse(&text),
        ToolOutput::Missing => Vec::new(),
        ToolOutput::Failed(output) => {
            tracing::warn!(
                output,
                "rocm-smi failed; a model server may not be able to use the GPUs; check that this user is in the groups video and render"
            );
            Vec::new()
        }
    };
    let mut found = if found.is_empty() {
        read_from_kernel(drm)
    } else {
        found
    };
    let version = fs::read_to_string(version_file).unwrap_or_default();
    if let Some(version) = clean_value(&version) {
        for device in &mut found {
            let features = device.features.get_or_insert_with(|| Map::new().into());
            if let Some(features) = features.as_object_mut() {
                features.insert("rocm_version".to_owned(), version.clone().into());
            }
        }
    }
    found
}

/// Parses one object per GPU. Names and case of the keys, and whether a number is a string, depend on the version.
fn parse(text: &str) -> Vec<GpuDevice> {
    // Warnings come before the JSON.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let Ok(cards) = serde_json::from_str::<Map<String, Value>>(json) else {
        if !text.is_empty() {
            let answer: String = text.chars().take(200).collect();
            tracing::warn!(answer, "unknown output of rocm-smi; GPUs are not reported");
        }
        return Vec::new();
    };
    let mut numbered: Vec<(u32, &Map<String, Value>)> = cards
        .iter()
        .filter_map(|(name, card)| {
            let number = name.strip_prefix("card")?.parse().ok()?;
            Some((number, card.as_object()?))
        })
        .collect();
    numbered.sort_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, card)| device(card)).collect()
}

fn device(card: &Map<String, Value>) -> GpuDevice {
    let of = |name: &str| {
        let (_, found) = card
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        match found {
            Value::String(text) => clean_value(text),
            Value::Number(number) => clean_value(&number.to_string()),
            _ => None,
        }
    };
    let is_name = |text: &String| !text.starts_with("0x");
    let name = ["Card series", "Device Name", "Card model"]
        .into_iter()
        .find_map(|key| of(key).filter(is_name));
    let bytes = of("VRAM Total Memory (B)").and_then(|bytes| bytes.parse::<u64>().ok());
    GpuDevice {
        id: None,
        busy: false,
        vendor: Some(Vendor::Amd.as_str().to_owned()),
        model: name.or_else(|| fallback_name(of("Card model"))),
        device_id: of("Unique ID"),
        vram_mb: bytes.map(|bytes| bytes >> 20),
        features: features([("gfx", of("GFX Version")), ("sku", of("Card SKU"))]),
    }
}

/// Reads the GPUs from the kernel module, which has less detail.
fn read_from_kernel(drm: &Path) -> Vec<GpuDevice> {
    let entries = fs::read_dir(drm).into_iter().flatten().flatten();
    let mut cards: Vec<(u32, std::path::PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            // Its outputs have entries, too, such as `card0-DP-1`.
            let number = name.to_str()?.strip_prefix("card")?.parse().ok()?;
            Some((number, entry.path().join("device")))
        })
        .collect();
    cards.sort();
    cards
        .iter()
        .filter_map(|(_, card)| read_card(card))
        .collect()
}

fn read_card(card: &Path) -> Option<GpuDevice> {
    let of = |name: &str| clean_value(&fs::read_to_string(card.join(name)).ok()?);
    if of("vendor")? != PCI_VENDOR {
        return None;
    }
    let bytes = of("mem_info_vram_total").and_then(|bytes| bytes.parse::<u64>().ok());
    let slot = pci_slot(&read_card_file(card, "uevent"));
    Some(GpuDevice {
        id: None,
        busy: false,
        vendor: Some(Vendor::Amd.as_str().to_owned()),
        model: of("product_name").or_else(|| fallback_name(of("device"))),
        // rocm-smi adds the prefix.
        device_id: of("unique_id").and_then(|id| clean_value(&format!("0x{id}"))),
        vram_mb: bytes.map(|bytes| bytes >> 20),
        features: features([("pci", slot)]),
    })
}

/// Device file through which programs compute on a card.
pub(super) struct RenderNode {
    /// Id of the card, as rocm-smi prints it.
    pub(super) unique_id: Option<String>,
    pub(super) path: String,
}

/// Device files of all cards of AMD, in the kernel's order.
pub(super) fn render_nodes(drm: &Path) -> Vec<RenderNode> {
    let entries = fs::read_dir(drm).into_iter().flatten().flatten();
    let mut nodes: Vec<(u32, std::path::PathBuf)> = entries
        .filter_map(|entry| {
            let number = entry
                .file_name()
                .to_str()?
                .strip_prefix("renderD")?
                .parse()
                .ok()?;
            Some((number, entry.path().join("device")))
        })
        .collect();
    nodes.sort();
    let of = |card: &Path, name: &str| clean_value(&read_card_file(card, name));
    let node = |(number, card): &(u32, std::path::PathBuf)| {
        let is_amd = of(card, "vendor")? == PCI_VENDOR;
        is_amd.then(|| RenderNode {
            unique_id: of(card, "unique_id").map(|id| format!("0x{id}")),
            path: format!("/dev/dri/renderD{number}"),
        })
    };
    nodes.iter().filter_map(node).collect()
}

fn read_card_file(card: &Path, name: &str) -> String {
    fs::read_to_string(card.join(name)).unwrap_or_default()
}

fn pci_slot(text: &str) -> Option<String> {
    let slot = text
        .lines()
        .find_map(|line| line.strip_prefix("PCI_SLOT_NAME="))?;
    clean_value(slot)
}

/// Name of a GPU of which only the PCI id is known.
fn fallback_name(id: Option<String>) -> Option<String> {
    clean_value(&format!("AMD GPU {}", id?))
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{assert_reportable, damaged, tool},
        *,
    };
    use proptest::prelude::*;
    use serde_json::json;

    const OLD: &str = include_str!("../../../tests/fixtures/gpu/amd-two-mi100-old.json");
    const NEW: &str = include_str!("../../../tests/fixtures/gpu/amd-7900xt-new.json");
    const MIXED: &str = include_str!("../../../tests/fixtures/gpu/amd-6800-and-raphael.json");

    fn reported(devices: &[GpuDevice]) -> Value {
        assert_reportable(devices);
        serde_json::to_value(devices).unwrap()
    }

    #[test]
    fn old_nvidia_smi_output_is_parsed() {
        let devices = parse(OLD);
        assert_eq!(devices.len(), 2, "other entries are not cards");
        let name = "Arcturus GL-XL [AMD Instinct MI100]";
        assert_eq!(reported(&devices)[1]["model"], name);
        assert_eq!(devices[1].vram_mb, Some(32752));
    }

    #[test]
    fn new_nvidia_smi_output_is_parsed() {
        assert_eq!(
            reported(&parse(NEW)),
            json!([{
                "vendor": "amd", "model": "Radeon RX 7900 XT", "vram_mb": 20464,
                "features": {"gfx": "gfx1100", "sku": "D70401XT"},
            }])
        );
    }

    #[test]
    fn integrated_graphics_is_card_with_little_memory() {
        let devices = parse(MIXED);
        assert_reportable(&devices);
        let memory: Vec<_> = devices.iter().map(|device| device.vram_mb).collect();
        assert_eq!(memory, [Some(16368), Some(64)]);
        assert_eq!(devices[1].device_id, None, "N/A is none");
    }

    /// A card as the kernel shows it.
    fn sysfs(drm: &Path, name: &str, files: &[(&str, &str)]) {
        let card = drm.join(name).join("device");
        fs::create_dir_all(&card).unwrap();
        for (file, text) in files {
            fs::write(card.join(file), format!("{text}\n")).unwrap();
        }
    }

    #[tokio::test]
    async fn kernel_data_replaces_failed_tool() {
        let home = tempfile::tempdir().unwrap();
        let drm = home.path().join("drm");
        sysfs(
            &drm,
            "card1",
            &[
                ("vendor", "0x1002"),
                ("device", "0x744c"),
                ("unique_id", "92a6e8fdfc3ba04a"),
                ("mem_info_vram_total", "25753026560"),
                ("uevent", "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0"),
            ],
        );
        sysfs(
            &drm,
            "card10",
            &[("vendor", "0x1002"), ("product_name", "AMD INSTINCT MI250")],
        );
        sysfs(&drm, "card0", &[("vendor", "0x10de")]);
        sysfs(&drm, "card1-DP-1", &[("vendor", "0x1002")]);
        sysfs(&drm, "renderD128", &[("vendor", "0x1002")]);
        let failing = tool(home.path(), "echo 'ERROR: no driver'; exit 1");
        let tool_version = Path::new("/nonexistent/version");
        for tool in [&failing, Path::new("/nonexistent/tool")] {
            assert_eq!(
                reported(&detect(tool, &drm, tool_version).await),
                json!([
                    {
                        "vendor": "amd", "model": "AMD GPU 0x744c", "vram_mb": 24560,
                        "device_id": "0x92a6e8fdfc3ba04a", "features": {"pci": "0000:03:00.0"},
                    },
                    {"vendor": "amd", "model": "AMD INSTINCT MI250"},
                ])
            );
        }
    }

    #[tokio::test]
    async fn warnings_before_output_are_skipped() {
        let home = tempfile::tempdir().unwrap();
        fs::write(
            home.path().join("answer"),
            format!("WARNING: no clue\n{NEW}"),
        )
        .unwrap();
        let script = format!("exec cat {}/answer", home.path().display());
        let nowhere = Path::new("/nonexistent");
        let version = home.path().join("version");
        fs::write(&version, "6.2.0-66\n").unwrap();
        let found = detect(&tool(home.path(), &script), nowhere, &version).await;
        assert_eq!(
            reported(&found)[0]["features"],
            json!({"gfx": "gfx1100", "sku": "D70401XT", "rocm_version": "6.2.0-66"})
        );
        assert_eq!(found.len(), 1);
    }

    proptest! {
        #[test]
        fn any_output_gives_valid_report(text in any::<String>(), name in any::<String>(), id in any::<String>()) {
            assert_reportable(&parse(&text));
            assert_reportable(&parse(&format!("{text}{{")));
            let card = json!({"card0": {"Card series": name, "Unique ID": id, "VRAM Total Memory (B)": text}});
            assert_reportable(&parse(&card.to_string()));
        }

        #[test]
        fn damaged_output_gives_valid_report(old in damaged(OLD), new in damaged(NEW), mixed in damaged(MIXED)) {
            for text in [old, new, mixed] {
                assert_reportable(&parse(&text));
            }
        }
    }
}
