//! Arguments of `cynode nodes`.

use super::{ClientFlags, number, parse_duration};
use crate::api::nodes::MAX_JOIN_TOKEN_USES;
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub enum NodesCommand {
    /// List all nodes
    List(ClientFlags),
    /// Show one node
    Show(NodeSlugArgs),
    /// Stop scheduling jobs on a node
    Drain(NodeSlugArgs),
    /// Schedule jobs on a drained node again
    Resume(NodeSlugArgs),
    /// Forget a node that is gone, so that another machine can use its slug
    Forget(NodeForgetArgs),
    /// Manage join tokens, by which new nodes join without the pre-shared key
    #[command(subcommand)]
    Token(NodeTokenCommand),
}

#[derive(Args, Debug)]
pub struct NodeSlugArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Slug of the node
    pub slug: String,
}

#[derive(Args, Debug)]
pub struct NodeForgetArgs {
    #[command(flatten)]
    pub node: NodeSlugArgs,
    /// Do not ask, even if the node is alive
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Subcommand, Debug)]
pub enum NodeTokenCommand {
    /// Create a join token and show it once
    ///
    /// The token holds the orchestrator's URL and a secret. The first nodes that show it join; each may start again
    /// with it later, until the token is removed.
    Create(NodeTokenCreateArgs),
    /// List join tokens with the nodes that joined by them
    List(ClientFlags),
    /// Remove join tokens; their nodes stay, but can't register again by them
    Rm(NodeTokenRmArgs),
}

#[derive(Args, Debug)]
pub struct NodeTokenCreateArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Let new nodes join for this time, such as 10m or 2d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub expires: Duration,
    /// Number of new nodes that can join
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = number::<u32, _>(1..=MAX_JOIN_TOKEN_USES)
    )]
    pub uses: u32,
    /// Let only the node with this slug join [default: any]
    #[arg(long, value_name = "SLUG")]
    pub slug: Option<String>,
    /// URL at which the node reaches the orchestrator's control plane [default: the one that it prints at its start]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Leave the orchestrator's pin out of the token: for a TLS proxy in front, or a key that changes
    ///
    /// The node then needs an authority that vouches for the certificate: the system's, or --ca-file. A certificate given
    /// with --tls-cert has no pin in tokens anyway.
    #[arg(long)]
    pub no_pin: bool,
}

#[derive(Args, Debug)]
pub struct NodeTokenRmArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Ids of the tokens, as the list shows them
    #[arg(required = true, value_name = "ID")]
    pub tokens: Vec<String>,
}
