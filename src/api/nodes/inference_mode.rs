//! The operator's choice whether a node runs a model server.

/// Whether a node runs a model server. In node.yaml each value has a second name, from other implementations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InferenceMode {
    /// Follow the orchestrator's configuration
    #[serde(alias = "allow")]
    Auto,
    /// Always run one
    #[serde(alias = "require")]
    On,
    /// Never run one
    #[serde(alias = "disabled")]
    Off,
}

impl InferenceMode {
    /// Spelling on the command line and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}
