//! The model server of this machine: one Ollama in a container of its own.
//!
//! [`plan`] decides what should run; [`ModelServerManager::ensure_running`] compares that with what runs, and makes up
//! the difference. It can be repeated at any time: at each start of the node, and when the server fails
//! ([`monitor`]).
//!
//! | found | reaction |
//! |---|---|
//! | container of this node, of the planned image and settings | adopted, and started if it has exited |
//! | container of this node, of others | replaced; its models stay in their volume |
//! | container of that name of another owner | an error that names the owner; it is never touched |
//! | no container, and a model server at the port | used (`existing_service`) |
//! | no container, and something else at the port | an error |
//! | nothing | the image is pulled and a container created |
//!
//! A node without a plan uses the model server that somebody else runs at the port, now or when it appears, unless it
//! is told never to. A server that is not required may fail: the node then runs sandboxes only, says so in its reports,
//! and its monitor goes on trying.
//!
//! There is never a second one: the name contains the port, a name is unique on a host, and containers of this
//! node under other names are removed first. The server is published on loopback only; other machines reach it
//! through the Worker API.
//!
//! The container outlives the node, so that a restart of the node does not reload models.

mod context_length;
mod error;
mod local;
mod manager;
mod monitor;
mod plan;
mod publisher;

pub use error::InferenceError;
pub(super) use local::LocalModelServer;
pub(super) use manager::ModelServerManager;
pub use manager::container_owner;
pub use plan::{MODEL_SERVER_PORT, Settings, container_name};
pub(super) use plan::{Plan, existing_address, plan};

/// Origin of the model server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// Container of this node.
    Container,
    /// Server that was there before, which this node neither starts nor stops.
    External,
}
