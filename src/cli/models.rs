//! Arguments of `cynode models`.

use super::ClientFlags;
use clap::{Args, Subcommand};

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ModelsArgs {
    #[command(subcommand)]
    pub command: Option<ModelsCommand>,
    #[command(flatten)]
    pub list: ModelListArgs,
}

#[derive(Subcommand, Debug)]
pub enum ModelsCommand {
    /// List the models of all nodes (the default)
    List(ModelListArgs),
    /// Pull a model at a node, with its progress (admins only)
    ///
    /// Ctrl-C ends the pull; another one continues where it ended.
    Pull(ModelArgs),
    /// Delete a model of a node (admins only)
    Rm(ModelArgs),
}

#[derive(Args, Debug)]
pub struct ModelListArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Only the models of this node
    #[arg(long, value_name = "SLUG")]
    pub node: Option<String>,
}

#[derive(Args, Debug)]
pub struct ModelArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Name of the model, such as qwen3:0.6b or hf.co/owner/name:Q4_K_M
    pub model: String,
    /// Slug of the node [default: the only node that runs a model server, or has the model]
    #[arg(long, value_name = "SLUG")]
    pub node: Option<String>,
}
