//! Way by which a node is reached: the operator's choice.

/// Who makes the connection between a node and its orchestrator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Connect {
    /// Dial where the orchestrator offers it; else listen
    Auto,
    /// The node opens a tunnel to the orchestrator; it needs no open port
    Dial,
    /// The orchestrator calls the node at its address
    Listen,
}
