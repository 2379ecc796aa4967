//! Validation of capability reports.

use super::{
    CapabilityReport, MAX_DEVICES, MAX_WARNING_BYTES,
    validation::{
        MAX_LABELS, MAX_URL_BYTES, check_label, check_slug, check_text, check_worker_url,
    },
};
use crate::api::{MAX_INSTANCE_ID_BYTES, check_version, is_valid_instance_id, problem::Problem};

/// Most entries of a list in a report.
const MAX_LIST_ENTRIES: usize = 256;
/// Most warnings in a report.
const MAX_WARNINGS: usize = 16;

impl CapabilityReport {
    /// Checks every field; `at` is the JSON pointer of the report.
    pub fn check(&self, at: &str) -> Result<(), Problem> {
        check_version(at, self.version)?;
        check_slug(&format!("{at}/node/node_slug"), &self.node.node_slug)?;
        let instance = self.node.instance_id.as_deref().unwrap_or("-");
        if !is_valid_instance_id(instance) {
            return Err(Problem::field(
                &format!("{at}/node/instance_id"),
                format!("must be 1 to {MAX_INSTANCE_ID_BYTES} visible ASCII characters"),
            ));
        }
        let labels = self.node.labels.as_deref().unwrap_or_default();
        if labels.len() > MAX_LABELS {
            return Err(Problem::field(
                &format!("{at}/node/labels"),
                format!(
                    "must have at most {MAX_LABELS} labels, got {}",
                    labels.len()
                ),
            ));
        }
        for (n, label) in labels.iter().enumerate() {
            check_label(&format!("{at}/node/labels/{n}"), label)?;
        }
        self.check_texts(at)?;
        self.check_lists(at)?;
        if let Some(inference) = &self.inference {
            inference.check(&format!("{at}/inference"))?;
        }
        if let Some(url) = self.worker_url() {
            check_worker_url(&format!("{at}/worker_api/base_url"), url)?;
        }
        if self
            .sandbox
            .as_ref()
            .is_some_and(|s| s.max_concurrency == Some(0))
        {
            return Err(Problem::field(
                &format!("{at}/sandbox/max_concurrency"),
                "must be a whole number of at least 1, got 0",
            ));
        }
        Ok(())
    }

    fn check_texts(&self, at: &str) -> Result<(), Problem> {
        let runtime = self.container_runtime.as_ref();
        let inference = self.inference.as_ref();
        let texts = [
            ("node/name", self.node.name.as_deref()),
            ("platform/os", Some(self.platform.os.as_str())),
            ("platform/distro", self.platform.distro.as_deref()),
            ("platform/arch", Some(self.platform.arch.as_str())),
            (
                "platform/kernel_version",
                self.platform.kernel_version.as_deref(),
            ),
            (
                "container_runtime/runtime",
                runtime.map(|r| r.runtime.as_str()),
            ),
            (
                "container_runtime/version",
                runtime.and_then(|r| r.version.as_deref()),
            ),
            ("compute/cpu_model", self.compute.cpu_model.as_deref()),
            (
                "network/outbound_policy",
                self.network
                    .as_ref()
                    .and_then(|n| n.outbound_policy.as_deref()),
            ),
            (
                "sandbox/reason",
                self.sandbox.as_ref().and_then(|s| s.reason.as_deref()),
            ),
            ("inference/mode", inference.and_then(|i| i.mode.as_deref())),
            (
                "tls/trust_material_status",
                self.tls
                    .as_ref()
                    .and_then(|t| t.trust_material_status.as_deref()),
            ),
        ];
        for (field, text) in texts {
            check_text(&format!("{at}/{field}"), text)?;
        }
        Ok(())
    }

    fn check_lists(&self, at: &str) -> Result<(), Problem> {
        let devices = self
            .gpu
            .as_ref()
            .and_then(|gpu| gpu.devices.as_deref())
            .unwrap_or_default();
        if devices.len() > MAX_DEVICES {
            return Err(Problem::field(
                &format!("{at}/gpu/devices"),
                format!(
                    "must have at most {MAX_DEVICES} devices, got {}",
                    devices.len()
                ),
            ));
        }
        for (n, device) in devices.iter().enumerate() {
            let at = format!("{at}/gpu/devices/{n}");
            check_text(&format!("{at}/id"), device.id.as_deref())?;
            check_text(&format!("{at}/vendor"), device.vendor.as_deref())?;
            check_text(&format!("{at}/model"), device.model.as_deref())?;
            check_text(&format!("{at}/device_id"), device.device_id.as_deref())?;
            if device
                .features
                .as_ref()
                .is_some_and(|features| features.to_string().len() > MAX_URL_BYTES)
            {
                return Err(Problem::field(
                    &format!("{at}/features"),
                    format!("must have at most {MAX_URL_BYTES} bytes"),
                ));
            }
        }
        self.check_warnings(at)?;
        let sandbox = self.sandbox.as_ref();
        let lists = [
            (
                "sandbox/allowed_images",
                sandbox.map(|sandbox| sandbox.allowed_images.as_slice()),
            ),
            (
                "sandbox/local_images",
                sandbox.and_then(|sandbox| sandbox.local_images.as_deref()),
            ),
            (
                "sandbox/features",
                self.sandbox.as_ref().and_then(|s| s.features.as_deref()),
            ),
            (
                "inference/models",
                self.inference.as_ref().and_then(|i| i.models.as_deref()),
            ),
        ];
        for (field, list) in lists {
            let list = list.unwrap_or_default();
            if list.len() > MAX_LIST_ENTRIES {
                return Err(Problem::field(
                    &format!("{at}/{field}"),
                    format!(
                        "must have at most {MAX_LIST_ENTRIES} entries, got {}",
                        list.len()
                    ),
                ));
            }
            for (n, text) in list.iter().enumerate() {
                check_text(&format!("{at}/{field}/{n}"), Some(text))?;
            }
        }
        Ok(())
    }

    fn check_warnings(&self, at: &str) -> Result<(), Problem> {
        let at = format!("{at}/sandbox/warnings");
        let warnings = self.warnings();
        if warnings.len() > MAX_WARNINGS {
            let detail = format!(
                "must have at most {MAX_WARNINGS} entries, got {}",
                warnings.len()
            );
            return Err(Problem::field(&at, detail));
        }
        for (n, warning) in warnings.iter().enumerate() {
            if warning.len() > MAX_WARNING_BYTES {
                let detail = format!(
                    "must have at most {MAX_WARNING_BYTES} bytes, got {}",
                    warning.len()
                );
                return Err(Problem::field(&format!("{at}/{n}"), detail));
            }
        }
        Ok(())
    }
}
