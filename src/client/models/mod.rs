//! `cynode models …`: the models of all nodes, listed, pulled and deleted.

mod absence;
mod choice;
mod pull;

use super::{
    api_client::ApiClient,
    paths,
    print::{self, clean},
};
use crate::{
    api::nodes::{ModelDetails, NodeList, NodeStatus, NodeView, check_model},
    cli::{ModelArgs, ModelListArgs, ModelsArgs, ModelsCommand, OutputFormat},
    exit::{Exit, Failure},
    http::query::encode,
};
use http::Method;
use serde::Serialize;

/// Model at a node, in the output for programs.
#[derive(Serialize)]
struct Listed {
    node_slug: String,
    #[serde(flatten)]
    model: ModelDetails,
}

/// Runs `cynode models` or one of its subcommands.
pub fn models(args: ModelsArgs) -> Result<(), Failure> {
    match args.command {
        None => list(&args.list),
        Some(ModelsCommand::List(args)) => list(&args),
        Some(ModelsCommand::Pull(args)) => pull::pull(&args),
        Some(ModelsCommand::Rm(args)) => delete(&args),
    }
}

fn list(args: &ModelListArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.client)?;
    let (nodes, absence) = match &args.node {
        Some(slug) => {
            let node: NodeView = api.get(&paths::node(slug, ""))?;
            let absence = absence::explain_node(&node);
            (vec![node], absence)
        }
        None => {
            let nodes = nodes(&mut api)?;
            let absence = absence::explain(&nodes);
            (nodes, absence)
        }
    };
    let models = listed(nodes);
    if args.client.output == OutputFormat::Json {
        return print::json(&serde_json::json!({ "models": models }));
    }
    if models.is_empty() {
        print::note(&absence);
        return Ok(());
    }
    print::table(
        ["MODEL", "NODE", "SIZE", "STATE", "CONTEXT"],
        models.iter().map(row),
    )
}

/// Text where no node serves a model: why not, as far as the caller may see the nodes.
pub(super) fn explain_absence(api: &mut ApiClient) -> String {
    match nodes(api) {
        Ok(nodes) => absence::explain(&nodes),
        Err(_) => "no node serves a model now; cynode nodes list shows the nodes".to_owned(),
    }
}

/// Models of the nodes that are online, by name and node.
fn listed(nodes: Vec<NodeView>) -> Vec<Listed> {
    let online = nodes
        .into_iter()
        .filter(|node| node.status != NodeStatus::Offline);
    let of_node = |node: NodeView| {
        let inference = node.inference.filter(|inference| inference.is_serving());
        let models = inference.map(|inference| inference.known_models());
        let node_slug = node.node_slug;
        let listed = models.unwrap_or_default().into_iter();
        listed.map(move |model| Listed {
            node_slug: node_slug.clone(),
            model,
        })
    };
    let mut models: Vec<Listed> = online.flat_map(of_node).collect();
    models.sort_by(|a, b| (&a.model.name, &a.node_slug).cmp(&(&b.model.name, &b.node_slug)));
    models
}

fn row(listed: &Listed) -> [String; 5] {
    let model = &listed.model;
    let unknown = || "-".to_owned();
    let state = match (model.loaded, model.vram_bytes) {
        (false, _) => unknown(),
        (true, None | Some(0)) => "loaded".to_owned(),
        (true, Some(bytes)) => format!("loaded, {} VRAM", print::size(bytes)),
    };
    [
        clean(&model.name),
        clean(&listed.node_slug),
        model.size_bytes.map_or_else(unknown, print::size),
        state,
        model
            .context_length
            .map_or_else(unknown, |tokens| tokens.to_string()),
    ]
}

/// Fails where no model can have the name that was typed. The API would name a field, which is no flag here.
fn check_name(model: &str) -> Result<(), Failure> {
    check_model("", model).map_err(|problem| {
        let text = clean(&format!("{model:?} {}", problem.detail));
        Failure::new(Exit::Invalid, text)
    })
}

fn delete(args: &ModelArgs) -> Result<(), Failure> {
    check_name(&args.model)?;
    let mut api = ApiClient::from_args(&args.client)?;
    let slug = match &args.node {
        Some(slug) => slug.clone(),
        None => choice::with_model(&nodes(&mut api)?, &args.model)?,
    };
    let path = paths::node(&slug, &format!("/models/{}", encode(&args.model)));
    api.done(Method::DELETE, &path, None::<&()>)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&serde_json::json!({"node_slug": slug, "model": args.model}));
    }
    print::note(&format!(
        "deleted {} from {}",
        clean(&args.model),
        clean(&slug)
    ));
    Ok(())
}

fn nodes(api: &mut ApiClient) -> Result<Vec<NodeView>, Failure> {
    Ok(api.get::<NodeList>("/v1/nodes")?.nodes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(in crate::client) fn node(slug: &str, status: &str, inference: Value) -> NodeView {
        serde_json::from_value(json!({
            "node_slug": slug, "status": status, "labels": [], "config_version": "1",
            "last_seen_at": "2026-01-01T00:00:00Z", "running_jobs": 0, "max_concurrency": 1,
            "inference": inference,
        }))
        .unwrap()
    }

    #[test]
    fn wrong_name_is_quoted() {
        check_name("hf.co/owner/name:Q4_K_M").unwrap();
        let failure = check_name("no/such \u{202e}model").unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        let start = r#""no/such \u{202e}model" is not a valid model name: 1 to 256 of "#;
        assert!(failure.message.starts_with(start), "{}", failure.message);
    }

    #[test]
    fn models_of_serving_nodes_are_listed() {
        let models = json!([
            {"name": "b:1b", "size_bytes": 3_000_000_000_u64, "loaded": true, "vram_bytes": 1_073_741_824, "context_length": 8192},
            {"name": "a:1b", "loaded": false},
        ]);
        let serving = |more: Value| {
            let mut inference = json!({"supported": true, "running": true});
            let more = more.as_object().unwrap().clone();
            inference.as_object_mut().unwrap().extend(more);
            inference
        };
        let nodes = vec![
            node("two", "ready", serving(json!({"model_details": models}))),
            node("peer", "ready", serving(json!({"models": ["a:1b"]}))),
            node("off", "offline", serving(json!({"models": ["c"]}))),
            node(
                "dead",
                "ready",
                json!({"supported": true, "running": false, "models": ["d"]}),
            ),
        ];
        let rows: Vec<_> = listed(nodes).iter().map(row).collect();
        assert_eq!(
            rows,
            [
                ["a:1b", "peer", "-", "-", "-"],
                ["a:1b", "two", "-", "-", "-"],
                ["b:1b", "two", "2.8 GiB", "loaded, 1.0 GiB VRAM", "8192"],
            ]
        );
    }
}
