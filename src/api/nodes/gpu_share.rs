//! The operator's choice whether jobs get the graphics processors of the model server.

/// Whether the model server and jobs share graphics processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuShare {
    /// Jobs get no GPU that the model server of this node uses
    Exclusive,
    /// Jobs and the model server use the same GPUs
    #[default]
    Shared,
}
