//! Arguments of `cynode chat`.

use super::{ClientFlags, OutputFormat};
use clap::Args;

#[derive(Args, Debug)]
pub struct ChatArgs {
    #[command(flatten)]
    pub client: ClientFlags,
    /// Model to ask [default: one that is loaded, else the first by name]
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub model_name: Option<String>,
    /// Same as MODEL
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Ask this, print the answer and exit; piped input is appended to it
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    /// System prompt: instructions that the model gets before the first message
    #[arg(long, short, value_name = "TEXT")]
    pub system: Option<String>,
    /// Go on with the last conversation
    #[arg(long = "continue", short = 'c')]
    pub is_continued: bool,
    /// Neither read nor write the state directory: no history, no --continue
    #[arg(long, conflicts_with = "is_continued")]
    pub no_history: bool,
    /// Print the answer as one JSON document; same as --output json
    #[arg(long)]
    pub json: bool,
}

impl ChatArgs {
    /// Model that was asked for.
    pub fn wanted_model(&self) -> Option<&str> {
        self.model_name.as_deref().or(self.model.as_deref())
    }

    /// Whether the answer is printed as JSON.
    pub fn is_json(&self) -> bool {
        self.json || self.client.output == OutputFormat::Json
    }
}
