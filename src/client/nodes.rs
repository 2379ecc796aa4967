//! `cynode nodes …` and `cynode status`.

use super::{
    gateway::Gateway,
    print::{self, clean},
};
use crate::{
    api::nodes::{NodeList, NodeView},
    cli::{Client, NodesCommand, Output},
    exit::Failure,
};
use http::Method;

/// What whoever forgets a node should know.
const STILL_THERE: &str = "\
Forgotten. If cynode still runs on that machine, it registers again by itself within seconds:
stop it there first if it is to stay away, restart it there if it is to take jobs again.";

/// One of the subcommands.
pub fn nodes(command: NodesCommand) -> Result<(), Failure> {
    match command {
        NodesCommand::List(client) => {
            let list: NodeList = Gateway::open(&client)?.get("/v1/nodes")?;
            if client.output == Output::Json {
                print::json(&list)
            } else {
                table(&list.nodes)
            }
        }
        NodesCommand::Show(args) => {
            let node: NodeView = Gateway::open(&args.client)?.get(&path(&args.slug, ""))?;
            if args.client.output == Output::Json {
                print::json(&node)
            } else {
                show(&node)
            }
        }
        NodesCommand::Drain(args) => Gateway::open(&args.client)?.done(
            Method::POST,
            &path(&args.slug, "/drain"),
            None::<&()>,
        ),
        NodesCommand::Resume(args) => Gateway::open(&args.client)?.done(
            Method::POST,
            &path(&args.slug, "/resume"),
            None::<&()>,
        ),
        NodesCommand::Forget(args) => {
            let path = path(&args.slug, "");
            Gateway::open(&args.client)?.done(Method::DELETE, &path, None::<&()>)?;
            print::note(STILL_THERE);
            Ok(())
        }
    }
}

/// Whether work can be done, and by whom.
pub fn status(client: &Client) -> Result<(), Failure> {
    let mut gateway = Gateway::open(client)?;
    let ready = gateway.ready()?;
    let list: NodeList = gateway.get("/v1/nodes")?;
    if client.output == Output::Json {
        let reason = ready.as_ref().err();
        return print::json(&serde_json::json!({
            "gateway_url": gateway.url, "ready": ready.is_ok(), "reason": reason, "nodes": list.nodes,
        }));
    }
    match ready {
        Ok(()) => print::line(&format!("{} is ready", gateway.url))?,
        Err(reason) => print::line(&format!("{} is not ready: {}", gateway.url, clean(&reason)))?,
    }
    if list.nodes.is_empty() {
        Ok(())
    } else {
        table(&list.nodes)
    }
}

fn table(nodes: &[NodeView]) -> Result<(), Failure> {
    let rows = nodes.iter().map(|node| {
        [
            clean(&node.node_slug),
            node.status.as_str().to_owned(),
            format!("{}/{}", node.running_jobs, node.max_concurrency),
            clean(&node.labels.join(",")),
            clean(node.reason.as_deref().unwrap_or_default()),
        ]
    });
    print::table(["NODE", "STATUS", "JOBS", "LABELS", "REASON"], rows)
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
        ("labels", clean(&node.labels.join(", "))),
        (
            "worker API",
            clean(node.worker_api_target_url.as_deref().unwrap_or("-")),
        ),
        (
            "config",
            format!("{} (acknowledged {})", node.config_version, clean(acked)),
        ),
        ("last seen", node.last_seen_at.to_string()),
    ])
}

fn path(slug: &str, rest: &str) -> String {
    format!("/v1/nodes/{}{rest}", print::percent_encode(slug))
}
