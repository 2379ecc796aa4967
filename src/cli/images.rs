//! Arguments of `cynode images`.

use super::ClientFlags;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum ImagesCommand {
    /// Send an image of this machine's podman to a node, for tasks with --image
    ///
    /// The image keeps its name, which the node has to allow (--allowed-image). An image of localhost/ is in no
    /// registry: tasks that name it run only at nodes that have it.
    Push(ImagePushArgs),
}

#[derive(Args, Debug)]
pub struct ImagePushArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Name of the image, such as localhost/tool:1
    pub image: String,
    /// Slug of the node
    #[arg(long, value_name = "SLUG")]
    pub node: String,
    /// Name or path of podman on this machine [default: podman]
    #[arg(long, env = "CYNODE_ENGINE", value_name = "PROGRAM")]
    pub engine: Option<PathBuf>,
}
