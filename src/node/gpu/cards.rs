//! GPUs that jobs can ask for: their ids, and podman's arguments for each.

use super::{Vendor, amd};
use crate::{api::nodes::GpuDevice, engine::gpus::GpuCandidate};
use std::path::Path;

/// Kind of NVIDIA's devices in their descriptions (CDI).
const NVIDIA_KIND: &str = "nvidia.com/gpu";

/// GPUs that could be passed to a job.
pub fn candidates(devices: &[GpuDevice]) -> Vec<GpuCandidate> {
    // Many processors contain a GPU of AMD; only one with a compute driver is usable.
    let nodes = if Path::new("/dev/kfd").exists() {
        amd::render_nodes(Path::new("/sys/class/drm"))
    } else {
        Vec::new()
    };
    of_vendor(devices, Vendor::Nvidia)
        .map(|(n, device, found)| nvidia(n, device, found))
        .chain(amd_cards(devices, &nodes))
        .collect()
}

/// Devices of one vendor: number among these, position among all, and the device.
fn of_vendor(
    devices: &[GpuDevice],
    vendor: Vendor,
) -> impl Iterator<Item = (usize, usize, &GpuDevice)> {
    let is_its =
        move |(_, device): &(usize, &GpuDevice)| device.vendor.as_deref() == Some(vendor.as_str());
    let its = devices.iter().enumerate().filter(is_its).enumerate();
    its.map(|(n, (at, device))| (n, at, device))
}

fn nvidia(n: usize, device: usize, found: &GpuDevice) -> GpuCandidate {
    // By default the tool that describes devices names them by number, and optionally by UUID.
    let names = [Some(n.to_string()), found.device_id.clone()];
    let variants = names.into_iter().flatten();
    GpuCandidate {
        id: n.to_string(),
        uuid: found.device_id.clone(),
        vendor: Vendor::Nvidia.as_str(),
        device,
        variants: variants
            .map(|name| vec![format!("--device={NVIDIA_KIND}={name}")])
            .collect(),
    }
}

/// Cards of AMD whose device file is known. Without NVIDIA's their ids are numbers, too.
fn amd_cards(devices: &[GpuDevice], nodes: &[amd::RenderNode]) -> Vec<GpuCandidate> {
    let prefix = if of_vendor(devices, Vendor::Nvidia).next().is_some() {
        "amd-"
    } else {
        ""
    };
    let cards: Vec<_> = of_vendor(devices, Vendor::Amd).collect();
    let candidate = |&(n, device, found): &(usize, usize, &GpuDevice)| {
        let by_id = nodes
            .iter()
            .find(|node| node.unique_id.is_some() && node.unique_id == found.device_id);
        // Cards for home use have no id; where all have a device file, both lists are in the kernel's order.
        let node = by_id.or_else(|| nodes.get(n).filter(|_| nodes.len() == cards.len()))?;
        Some(GpuCandidate {
            id: format!("{prefix}{n}"),
            uuid: found.device_id.clone(),
            vendor: Vendor::Amd.as_str(),
            device,
            variants: vec![vec![
                "--device=/dev/kfd".to_owned(),
                format!("--device={}", node.path),
            ]],
        })
    };
    cards.iter().filter_map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(vendor: Vendor, id: Option<&str>) -> GpuDevice {
        GpuDevice {
            vendor: Some(vendor.as_str().to_owned()),
            device_id: id.map(str::to_owned),
            ..GpuDevice::default()
        }
    }

    fn node(id: Option<&str>, path: &str) -> amd::RenderNode {
        amd::RenderNode {
            unique_id: id.map(str::to_owned),
            path: path.to_owned(),
        }
    }

    #[test]
    fn nvidia_is_named_by_number_or_uuid() {
        let devices = [
            device(Vendor::Nvidia, Some("GPU-a")),
            device(Vendor::Nvidia, None),
        ];
        let found = candidates(&devices);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].variants,
            [
                ["--device=nvidia.com/gpu=0"],
                ["--device=nvidia.com/gpu=GPU-a"]
            ]
        );
        assert_eq!((found[1].id.as_str(), found[1].device), ("1", 1));
        assert_eq!(found[1].variants, [["--device=nvidia.com/gpu=1"]]);
    }

    #[test]
    fn amd_card_gets_its_own_device_file() {
        let devices = [
            device(Vendor::Amd, Some("0x2")),
            device(Vendor::Amd, Some("0x1")),
        ];
        let nodes = [
            node(Some("0x1"), "/dev/dri/renderD128"),
            node(Some("0x2"), "/dev/dri/renderD129"),
        ];
        let found = amd_cards(&devices, &nodes);
        let args = |n: usize| found[n].variants[0].join(" ");
        assert_eq!(args(0), "--device=/dev/kfd --device=/dev/dri/renderD129");
        assert_eq!(args(1), "--device=/dev/kfd --device=/dev/dri/renderD128");
        assert_eq!((found[0].id.as_str(), found[1].id.as_str()), ("0", "1"));
        let mixed = [device(Vendor::Nvidia, None), device(Vendor::Amd, None)];
        let found = amd_cards(&mixed, &nodes[..1]);
        assert_eq!((found[0].id.as_str(), found[0].device), ("amd-0", 1));
        assert!(
            amd_cards(&mixed, &nodes).is_empty(),
            "it can't be told which"
        );
    }
}
