//! Length of the context for a model server, by the memory of the GPUs that it uses.
//!
//! A model of 8 billion parameters takes about 128 KiB of memory for each token of its context, beside about 5 GiB for
//! itself. The lengths leave most of the memory to the model, and smaller models far below the limit. A GPU reports a
//! little less memory than it is sold with, so that the limits lie below the usual sizes.

use crate::{api::nodes::GpuDevice, node::gpu::Vendor};

/// Least memory of the GPUs together, in GiB, and the length of the context, in tokens; the largest first.
const LENGTHS: [(u64, u32); 6] = [
    (75, 131_072),
    (44, 65_536),
    (22, 32_768),
    (11, 16_384),
    (7, 8_192),
    (0, 4_096),
];

/// Length of the context that fits into the memory of all GPUs of this vendor, in tokens. `None` where that is unknown,
/// as for GPUs that share the memory of the machine: the model server then decides.
pub(super) fn fitting(devices: &[GpuDevice], vendor: Vendor) -> Option<u32> {
    let of_vendor = devices
        .iter()
        .filter(|device| device.vendor.as_deref() == Some(vendor.as_str()));
    let sizes: Option<Vec<u64>> = of_vendor.map(|device| device.vram_mb).collect();
    let total_mib = sizes?
        .into_iter()
        .reduce(u64::saturating_add)
        .filter(|mib| *mib > 0)?;
    let fits = |(gib, _): &&(u64, u32)| total_mib >= gib * 1024;
    LENGTHS.iter().find(fits).map(|(_, tokens)| *tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gpu(vendor: &str, vram_mb: Option<u64>) -> GpuDevice {
        GpuDevice {
            vendor: Some(vendor.to_owned()),
            vram_mb,
            ..GpuDevice::default()
        }
    }

    #[test]
    fn usual_cards_get_their_length() {
        for (mib, tokens) in [
            (6_144, 4_096),
            (7_979, 8_192),
            (8_192, 8_192),
            (12_288, 16_384),
            (16_376, 16_384),
            (23_028, 32_768),
            (24_576, 32_768),
            (46_068, 65_536),
            (81_559, 131_072),
            (143_771, 131_072),
        ] {
            let card = gpu("nvidia", Some(mib));
            assert_eq!(fitting(&[card], Vendor::Nvidia), Some(tokens), "{mib}");
        }
    }

    #[test]
    fn memory_of_one_vendor_is_added_up() {
        let cards = [
            gpu("nvidia", Some(24_576)),
            gpu("amd", Some(8_192)),
            gpu("nvidia", Some(24_576)),
        ];
        assert_eq!(fitting(&cards, Vendor::Nvidia), Some(65_536));
        assert_eq!(fitting(&cards, Vendor::Amd), Some(8_192));
    }

    #[test]
    fn unknown_memory_gives_no_length() {
        let shared = [gpu("nvidia", None), gpu("nvidia", Some(24_576))];
        assert_eq!(fitting(&shared, Vendor::Nvidia), None);
        assert_eq!(fitting(&[gpu("amd", Some(0))], Vendor::Amd), None);
        assert_eq!(fitting(&[], Vendor::Amd), None);
    }

    proptest! {
        #[test]
        fn more_memory_never_shortens(less in 1_u64.., more in 1_u64..) {
            let (less, more) = (less.min(more), less.max(more));
            let of = |mib| fitting(&[gpu("amd", Some(mib))], Vendor::Amd);
            prop_assert!(of(less) <= of(more));
        }
    }
}
