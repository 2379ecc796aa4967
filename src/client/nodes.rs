//! `cynode nodes …` and `cynode status`.

use super::{
    api_client::ApiClient,
    confirm::confirm,
    node_tokens, paths,
    print::{self, clean},
};
use crate::{
    api::nodes::{Gpu, GpuDevice, Inference, NodeList, NodeStatus, NodeView},
    cli::{ClientFlags, NodeForgetArgs, NodesCommand, OutputFormat},
    exit::Failure,
};
use http::Method;

/// Notice after a node was forgotten.
const FORGET_NOTICE: &str = "\
Forgotten. If cynode still runs on that machine, it registers again within seconds, draining if it was:
stop it there first to keep it away.";

/// Runs a subcommand of `cynode nodes`.
pub fn nodes(command: NodesCommand) -> Result<(), Failure> {
    match command {
        NodesCommand::List(client) => {
            let list: NodeList = ApiClient::from_args(&client)?.get("/v1/nodes")?;
            if client.output == OutputFormat::Json {
                print::json(&list)
            } else {
                table(&list.nodes)
            }
        }
        NodesCommand::Show(args) => {
            let node: NodeView =
                ApiClient::from_args(&args.client)?.get(&paths::node(&args.slug, ""))?;
            if args.client.output == OutputFormat::Json {
                print::json(&node)
            } else {
                show(&node)
            }
        }
        NodesCommand::Drain(args) => ApiClient::from_args(&args.client)?.done(
            Method::POST,
            &paths::node(&args.slug, "/drain"),
            None::<&()>,
        ),
        NodesCommand::Resume(args) => ApiClient::from_args(&args.client)?.done(
            Method::POST,
            &paths::node(&args.slug, "/resume"),
            None::<&()>,
        ),
        NodesCommand::Forget(args) => forget(&args),
        NodesCommand::Token(command) => node_tokens::run(command),
    }
}

/// Forgets a node. Asks first where it is online: it takes its slug back, and the admin may have meant another.
fn forget(args: &NodeForgetArgs) -> Result<(), Failure> {
    let (mut api, slug) = (ApiClient::from_args(&args.node.client)?, &args.node.slug);
    let path = paths::node(slug, "");
    let node: NodeView = api.get(&path)?;
    if node.status != NodeStatus::Offline {
        let question = format!("Node {} is online. Forget it anyway?", clean(slug));
        confirm(&question, args.yes)?;
    }
    api.done(Method::DELETE, &path, None::<&()>)?;
    print::note(FORGET_NOTICE);
    Ok(())
}

/// Shows whether the orchestrator is ready, and its nodes.
pub fn status(client: &ClientFlags) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(client)?;
    let ready = api.readiness()?;
    let list: NodeList = api.get("/v1/nodes")?;
    if client.output == OutputFormat::Json {
        let reason = ready.as_ref().err();
        return print::json(&serde_json::json!({
            "gateway_url": api.url, "ready": ready.is_ok(), "reason": reason, "nodes": list.nodes,
        }));
    }
    match ready {
        Ok(()) => print::line(&format!("{} is ready", api.url))?,
        Err(reason) => print::line(&format!("{} is not ready: {}", api.url, clean(&reason)))?,
    }
    if list.nodes.is_empty() {
        return Ok(());
    }
    table(&list.nodes)?;
    let loaded: Vec<_> = list.nodes.iter().flat_map(loaded_models).collect();
    if loaded.is_empty() {
        return Ok(());
    }
    print::line("")?;
    print::table(["LOADED MODEL", "NODE", "VRAM"], loaded.into_iter())
}

/// Rows of the models that a node has in memory.
fn loaded_models(node: &NodeView) -> impl Iterator<Item = [String; 3]> {
    let inference = node.inference.as_ref();
    let inference =
        inference.filter(|known| node.status != NodeStatus::Offline && known.is_serving());
    let models = inference.map(Inference::known_models).unwrap_or_default();
    let loaded = models.into_iter().filter(|model| model.loaded);
    loaded.map(|model| {
        let vram = model.vram_bytes.filter(|bytes| *bytes > 0);
        let vram = vram.map_or_else(|| "-".to_owned(), print::size);
        [clean(&model.name), clean(&node.node_slug), vram]
    })
}

fn table(nodes: &[NodeView]) -> Result<(), Failure> {
    let rows = nodes.iter().map(|node| {
        [
            clean(&node.node_slug),
            node.status.as_str().to_owned(),
            format!("{}/{}", node.running_jobs, node.max_concurrency),
            inference(
                node.inference
                    .as_ref()
                    .filter(|_| node.status != NodeStatus::Offline),
            )
            .to_owned(),
            clean(&node.labels.join(",")),
            clean(node.reason.as_deref().unwrap_or_default()),
        ]
    });
    print::table(
        ["NODE", "STATUS", "JOBS", "INFERENCE", "LABELS", "REASON"],
        rows,
    )
}

fn show(node: &NodeView) -> Result<(), Failure> {
    let acked = node.acked_config_version.as_deref().unwrap_or("none");
    print::pairs([
        ("node", clean(&node.node_slug)),
        ("name", clean(node.name.as_deref().unwrap_or("-"))),
        ("status", node.status.as_str().to_owned()),
        ("reason", clean(node.reason.as_deref().unwrap_or("-"))),
        (
            "jobs",
            format!("{} of {}", node.running_jobs, node.max_concurrency),
        ),
        ("warm sandboxes", warm(node)),
        ("labels", clean(&node.labels.join(", "))),
        ("worker API", worker_api(node)),
        (
            "config",
            format!("{} (acknowledged {})", node.config_version, clean(acked)),
        ),
        ("last seen", node.last_seen_at.to_string()),
        ("gpu", clean(&gpu(node.gpu.as_ref()))),
        ("gpus for jobs", clean(&gpus_for_jobs(node.gpu.as_ref()))),
        ("inference", inference_detail(node.inference.as_ref())),
        ("models", clean(&models(node.inference.as_ref()))),
    ])?;
    for warning in &node.warnings {
        print::line(&format!("warning: {}", clean(warning)))?;
    }
    Ok(())
}

/// Way to the Worker API of a node.
fn worker_api(node: &NodeView) -> String {
    if node.via_tunnel {
        return "via tunnel".to_owned();
    }
    clean(node.worker_api_target_url.as_deref().unwrap_or("-"))
}

/// Sandboxes of a node that wait for jobs.
fn warm(node: &NodeView) -> String {
    node.warm.map_or_else(
        || "-".to_owned(),
        |warm| format!("{} of at most {}", warm.ready, warm.max),
    )
}

/// State of a node's model server; `-` where it has none.
fn inference(inference: Option<&Inference>) -> &'static str {
    match inference {
        Some(inference) if inference.is_serving() => "running",
        Some(inference) if inference.supported => "not running",
        _ => "-",
    }
}

/// State of a node on whose machine no model server answers, and that starts none.
const NO_MODEL_SERVER: &str = "none; start Ollama there, or the node with --inference on";

/// State of a node's model server, and whether cynode runs it.
fn inference_detail(service: Option<&Inference>) -> String {
    let existing = service.is_some_and(|i| i.supported && i.existing_service == Some(true));
    let whose = if existing { " (external server)" } else { "" };
    let reason = service.and_then(|known| known.reason.as_deref());
    match (inference(service), reason) {
        ("-", _) => NO_MODEL_SERVER.to_owned(),
        (state, Some(reason)) => format!("{state}{whose}: {}", clean(reason)),
        (state, None) => format!("{state}{whose}"),
    }
}

/// Models of a node, and which are loaded, with the memory that they occupy.
fn models(inference: Option<&Inference>) -> String {
    let models = inference.map(Inference::known_models).unwrap_or_default();
    let shown = models.into_iter().map(|model| {
        let vram = model.vram_bytes.filter(|bytes| *bytes > 0);
        match (model.loaded, vram) {
            (false, _) => model.name,
            (true, None) => format!("{} (loaded)", model.name),
            (true, Some(bytes)) => format!("{} (loaded, {} VRAM)", model.name, print::size(bytes)),
        }
    });
    let shown: Vec<_> = shown.collect();
    if shown.is_empty() {
        return "-".to_owned();
    }
    shown.join(", ")
}

/// Graphics processors, equal ones together: number, model, memory each.
fn gpu(gpu: Option<&Gpu>) -> String {
    let Some(gpu) = gpu.filter(|gpu| gpu.present) else {
        return "-".to_owned();
    };
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for kind in gpu.devices.iter().flatten().map(device) {
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    if kinds.is_empty() {
        return "present".to_owned();
    }
    let kinds = kinds
        .iter()
        .map(|(kind, count)| format!("{count} × {kind}"));
    kinds.collect::<Vec<_>>().join(", ")
}

/// Devices that jobs can have, and whether one has them; `-` for none.
fn gpus_for_jobs(gpu: Option<&Gpu>) -> String {
    let devices = gpu.and_then(|gpu| gpu.devices.as_deref());
    let state = |device: &GpuDevice| {
        let state = if device.busy { "busy" } else { "free" };
        Some(format!("{} {state}", device.id.as_deref()?))
    };
    let states: Vec<_> = devices.into_iter().flatten().filter_map(state).collect();
    if states.is_empty() {
        return "-".to_owned();
    }
    states.join(", ")
}

fn device(device: &GpuDevice) -> String {
    let name = device.model.as_deref().or(device.vendor.as_deref());
    let name = name.unwrap_or("unknown");
    device.vram_mb.map_or_else(
        || name.to_owned(),
        |mb| format!("{name} ({:.1} GiB)", mb as f64 / 1024.0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn gpus_are_counted_by_kind() {
        let shown = |value| gpu(Some(&serde_json::from_value(value).unwrap()));
        let h100 = json!({"vendor": "nvidia", "model": "H100", "vram_mb": 81_559});
        let devices =
            json!([h100, {"model": "W7900", "vram_mb": 49_152}, h100, {"vendor": "amd"}, {}]);
        assert_eq!(
            shown(json!({"present": true, "devices": devices})),
            "2 × H100 (79.6 GiB), 1 × W7900 (48.0 GiB), 1 × amd, 1 × unknown"
        );
        assert_eq!(shown(json!({"present": true})), "present");
        assert_eq!(shown(json!({"present": true, "devices": []})), "present");
        assert_eq!(shown(json!({"present": false, "devices": devices})), "-");
        assert_eq!(gpu(None), "-");
    }

    #[test]
    fn devices_for_jobs_are_free_or_busy() {
        let shown = |value| gpus_for_jobs(Some(&serde_json::from_value(value).unwrap()));
        let devices = json!([{"id": "0"}, {"model": "iGPU"}, {"id": "1", "busy": true}]);
        assert_eq!(shown(json!({"devices": devices})), "0 free, 1 busy");
        assert_eq!(shown(json!({"devices": [{"model": "iGPU"}]})), "-");
        assert_eq!(gpus_for_jobs(None), "-");
    }

    #[test]
    fn model_server_states_are_distinguished() {
        let of = |value| serde_json::from_value::<Inference>(value).unwrap();
        for (value, text) in [
            (json!({"supported": true, "running": true}), "running"),
            (json!({"supported": true, "running": false}), "not running"),
            (json!({"supported": true}), "not running"),
        ] {
            assert_eq!(inference(Some(&of(value.clone()))), text);
            assert_eq!(inference_detail(Some(&of(value))), text);
        }
        let none = of(json!({"supported": false, "running": true}));
        assert_eq!(inference(Some(&none)), "-");
        assert_eq!(inference_detail(Some(&none)), NO_MODEL_SERVER);
        assert_eq!((inference(None), models(None)), ("-", "-".to_owned()));
        let theirs = of(json!({
            "supported": true, "running": true, "existing_service": true, "models": ["b:1", "a"],
        }));
        assert_eq!(inference_detail(Some(&theirs)), "running (external server)");
        assert_eq!(models(Some(&theirs)), "b:1, a");
        let failed =
            of(json!({"supported": true, "running": false, "reason": "port-in-use: \u{1b}[2J"}));
        assert_eq!(
            inference_detail(Some(&failed)),
            "not running: port-in-use:  [2J"
        );
    }

    #[test]
    fn loaded_models_show_their_memory() {
        let details = json!([
            {"name": "a", "loaded": true, "vram_bytes": 1_610_612_736},
            {"name": "b", "loaded": true, "vram_bytes": 0},
            {"name": "c", "vram_bytes": 7},
        ]);
        let node = json!({"models": ["a", "b", "c"], "model_details": details});
        let node: Inference = serde_json::from_value(node).unwrap();
        let expected = "a (loaded, 1.5 GiB VRAM), b (loaded), c";
        assert_eq!(models(Some(&node)), expected);
    }
}
