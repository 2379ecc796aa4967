//! Plan of the model server: a pure decision from the settings, the orchestrator's configuration and the GPUs of
//! the machine.

use super::{InferenceError, context_length};
use crate::{
    api::{
        image::ImageRef,
        nodes::{GpuDevice, GpuShare, InferenceBackend, InferenceMode, check_model},
    },
    node::gpu::Vendor,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

/// Image for a configuration that names none.
const OLLAMA_IMAGE: &str = "docker.io/ollama/ollama";
/// Ollama's own port.
pub const MODEL_SERVER_PORT: u16 = 11434;

/// Inference settings of a node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether to run a model server.
    pub mode: InferenceMode,
    /// Port on loopback. `None`: the one from the orchestrator, or else Ollama's own.
    pub port: Option<u16>,
    /// Time limit for pulling the image.
    pub pull_timeout: Duration,
    /// Time limit from the start to the first answer.
    pub start_timeout: Duration,
    /// Whether jobs get the GPUs that the model server uses.
    pub gpu_share: GpuShare,
    /// Length of the context of models, in tokens. `None`: as fits the memory of the GPUs.
    pub context_length: Option<u32>,
}

/// A model server to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::node) struct Plan {
    pub(super) image: ImageRef,
    pub(super) port: u16,
    /// Vendor of the GPUs to use. `None`: the CPU.
    pub(super) accelerator: Option<Vendor>,
    pub(super) models: Vec<String>,
    /// Whether the node does not start without it.
    pub(super) is_required: bool,
    /// Length of the context of models, in tokens. `None`: the server decides.
    pub(super) context_length: Option<u32>,
}

/// Address at which a node without a plan uses a model server of somebody else; `None` where it is told never to.
pub(in crate::node) fn existing_address(settings: &Settings) -> Option<SocketAddr> {
    let port = settings.port.unwrap_or(MODEL_SERVER_PORT);
    (settings.mode != InferenceMode::Off).then_some((Ipv4Addr::LOCALHOST, port).into())
}

/// Plans the model server. `None`: this node runs none. `devices` are the GPUs here, and `usable` the vendors of those
/// that a model server can use.
pub(in crate::node) fn plan(
    settings: &Settings,
    backend: Option<&InferenceBackend>,
    devices: &[GpuDevice],
    usable: &[Vendor],
) -> Result<Option<Plan>, InferenceError> {
    let backend = backend.filter(|backend| backend.enabled);
    match (settings.mode, backend) {
        (InferenceMode::Off, _) | (InferenceMode::Auto, None) => return Ok(None),
        (InferenceMode::Auto, Some(_)) | (InferenceMode::On, _) => {}
    }
    let named = |field: fn(&InferenceBackend) -> Option<&str>| backend.and_then(field);
    let accelerator = accelerator(named(|backend| backend.variant.as_deref()), usable)?;
    let image = named(|backend| backend.image.as_deref()).unwrap_or(OLLAMA_IMAGE);
    let image: ImageRef = image
        .parse()
        .map_err(|error| InferenceError::Configuration(format!("the image {image:?}: {error}")))?;
    let port = settings
        .port
        .or(backend.and_then(|backend| backend.port))
        .unwrap_or(MODEL_SERVER_PORT);
    if port == 0 {
        return Err(InferenceError::Configuration(
            "port 0 is not a valid port".to_owned(),
        ));
    }
    let models = backend
        .and_then(|backend| backend.models.clone())
        .unwrap_or_default();
    for model in &models {
        check_model("", model).map_err(|problem| {
            InferenceError::Configuration(format!("the model {model:?} {}", problem.detail))
        })?;
    }
    Ok(Some(Plan {
        image: image_for(image, accelerator),
        port,
        accelerator,
        models,
        is_required: settings.mode == InferenceMode::On,
        context_length: settings
            .context_length
            .or_else(|| context_length::fitting(devices, accelerator?)),
    }))
}

/// The configured variant, or else the first usable vendor.
fn accelerator(variant: Option<&str>, usable: &[Vendor]) -> Result<Option<Vendor>, InferenceError> {
    match variant.unwrap_or_default() {
        "" => Ok(usable.first().copied()),
        "cuda" | "nvidia" => Ok(Some(Vendor::Nvidia)),
        "rocm" | "amd" => Ok(Some(Vendor::Amd)),
        "cpu" => Ok(None),
        other => Err(InferenceError::Configuration(format!(
            "unknown variant {other:?}; expected cuda, rocm or cpu"
        ))),
    }
}

/// The image for an accelerator: Ollama's builds for AMD have the tags `rocm` and `1.2.3-rocm`.
fn image_for(image: ImageRef, accelerator: Option<Vendor>) -> ImageRef {
    let tag = image
        .as_str()
        .strip_prefix(OLLAMA_IMAGE)
        .and_then(|rest| rest.strip_prefix(':'))
        .filter(|tag| accelerator == Some(Vendor::Amd) && !tag.ends_with("rocm"));
    let wanted = match tag {
        Some("latest") => format!("{OLLAMA_IMAGE}:rocm"),
        Some(tag) if !tag.contains('@') => format!("{OLLAMA_IMAGE}:{tag}-rocm"),
        _ => return image,
    };
    wanted.parse().unwrap_or(image)
}

impl Plan {
    /// Arguments of podman that give the container the GPUs.
    pub(super) fn podman_args(&self, rootless: bool) -> &'static [&'static str] {
        self.accelerator
            .map_or(&[], |vendor| vendor.podman_args(rootless))
    }

    /// Address of the model server.
    pub(in crate::node) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Vendor of the GPUs that the model server uses; `None`: it uses the CPU.
    pub(in crate::node) const fn accelerator(&self) -> Option<Vendor> {
        self.accelerator
    }

    /// Name of the container, and of the volume for its models.
    pub(super) fn name(&self) -> String {
        container_name(self.port)
    }
}

/// Name of the container of a model server at this port.
pub fn container_name(port: u16) -> String {
    format!("cynode-ollama-{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: InferenceMode, port: Option<u16>) -> Settings {
        Settings {
            mode,
            port,
            pull_timeout: Duration::from_secs(1),
            gpu_share: GpuShare::Shared,
            context_length: None,
            start_timeout: Duration::from_secs(1),
        }
    }

    fn backend(json: serde_json::Value) -> InferenceBackend {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn inference_mode_overrides_orchestrator() {
        let enabled = backend(serde_json::json!({"enabled": true}));
        let disabled = backend(serde_json::json!({"enabled": false}));
        for (mode, backend, runs) in [
            (InferenceMode::Off, Some(&enabled), false),
            (InferenceMode::Auto, Some(&enabled), true),
            (InferenceMode::Auto, Some(&disabled), false),
            (InferenceMode::Auto, None, false),
            (InferenceMode::On, Some(&enabled), true),
            (InferenceMode::On, Some(&disabled), true),
            (InferenceMode::On, None, true),
        ] {
            let plan = plan(&settings(mode, None), backend, &[], &[]).unwrap();
            assert_eq!(plan.is_some(), runs, "{mode:?} {backend:?}");
            let is_required = plan.is_some_and(|plan| plan.is_required);
            assert_eq!(is_required, mode == InferenceMode::On);
        }
    }

    #[test]
    fn closest_port_setting_wins() {
        let named = backend(serde_json::json!({"enabled": true, "port": 7}));
        let plain = backend(serde_json::json!({"enabled": true}));
        let port = |port, backend| {
            let settings = settings(InferenceMode::Auto, port);
            plan(&settings, Some(backend), &[], &[])
                .unwrap()
                .unwrap()
                .port
        };
        assert_eq!(port(Some(9), &named), 9);
        assert_eq!(port(None, &named), 7);
        assert_eq!(port(None, &plain), MODEL_SERVER_PORT);
    }

    #[test]
    fn each_accelerator_gets_image_and_devices() {
        let planned = |image: &str, variant: Option<&str>, vendors: &[Vendor]| {
            let backend =
                backend(serde_json::json!({"enabled": true, "image": image, "variant": variant}));
            plan(
                &settings(InferenceMode::Auto, None),
                Some(&backend),
                &[],
                vendors,
            )
            .unwrap()
            .unwrap()
        };
        let latest = "docker.io/ollama/ollama:latest";
        type Case<'a> = (&'a str, Option<&'a str>, &'a [Vendor], &'a str, &'a str);
        let cases: [Case<'_>; 7] = [
            (latest, None, &[], latest, ""),
            (
                latest,
                None,
                &[Vendor::Nvidia, Vendor::Amd],
                latest,
                "nvidia.com/gpu=all",
            ),
            (
                latest,
                None,
                &[Vendor::Amd],
                "docker.io/ollama/ollama:rocm",
                "/dev/kfd",
            ),
            (
                latest,
                Some("rocm"),
                &[Vendor::Nvidia],
                "docker.io/ollama/ollama:rocm",
                "/dev/kfd",
            ),
            (latest, Some("cpu"), &[Vendor::Nvidia], latest, ""),
            (
                "ollama/ollama:0.9.1",
                None,
                &[Vendor::Amd],
                "docker.io/ollama/ollama:0.9.1-rocm",
                "/dev/kfd",
            ),
            (
                "localhost/mine",
                None,
                &[Vendor::Amd],
                "localhost/mine:latest",
                "/dev/kfd",
            ),
        ];
        for (image, variant, vendors, expected, argument) in cases {
            let plan = planned(image, variant, vendors);
            assert_eq!(plan.image.as_str(), expected);
            let devices = plan.podman_args(false).join(" ");
            assert!(devices.contains(argument), "{devices}");
            assert_eq!(devices.is_empty(), argument.is_empty(), "{devices}");
        }
    }

    #[test]
    fn operator_context_length_wins() {
        let backend = backend(serde_json::json!({"enabled": true}));
        let cards = [GpuDevice {
            vendor: Some("nvidia".to_owned()),
            vram_mb: Some(24_576),
            ..GpuDevice::default()
        }];
        let length = |own, vendors: &[Vendor]| {
            let settings = Settings {
                context_length: own,
                ..settings(InferenceMode::Auto, None)
            };
            let plan = plan(&settings, Some(&backend), &cards, vendors).unwrap();
            plan.unwrap().context_length
        };
        assert_eq!(length(None, &[Vendor::Nvidia]), Some(32_768));
        assert_eq!(length(Some(1000), &[Vendor::Nvidia]), Some(1000));
        assert_eq!(length(None, &[]), None);
        assert_eq!(length(Some(1000), &[]), Some(1000));
    }

    #[test]
    fn server_of_others_is_used_unless_off() {
        let port = |mode, port| existing_address(&settings(mode, port)).map(|at| at.port());
        assert_eq!(port(InferenceMode::Auto, None), Some(MODEL_SERVER_PORT));
        assert_eq!(port(InferenceMode::Auto, Some(7)), Some(7));
        assert_eq!(port(InferenceMode::Off, Some(7)), None);
    }

    #[test]
    fn invalid_orchestrator_configuration_is_error() {
        for wrong in [
            serde_json::json!({"enabled": true, "image": "--privileged"}),
            serde_json::json!({"enabled": true, "variant": "quantum"}),
            serde_json::json!({"enabled": true, "port": 0}),
            serde_json::json!({"enabled": true, "models": ["tiny", "../../etc/passwd"]}),
        ] {
            let backend = backend(wrong);
            assert!(
                plan(
                    &settings(InferenceMode::Auto, None),
                    Some(&backend),
                    &[],
                    &[]
                )
                .is_err()
            );
        }
    }
}
