//! Calls that may reach a model server. All others are refused: pulls, deletes and copies of models among them.

use http::Method;

/// API that a call belongs to; it decides the shape of errors and of streams.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Family {
    /// OpenAI's API. Streams are server-sent events.
    OpenAi,
    /// Anthropic's API. Streams are server-sent events with names.
    Anthropic,
    /// Ollama's own API. Streams are lines of JSON.
    Ollama,
}

impl Family {
    /// Name for metrics and logs.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether streams are server-sent events, which may hold comments.
    pub const fn has_events(self) -> bool {
        matches!(self, Self::OpenAi | Self::Anthropic)
    }
}

macro_rules! endpoints {
    ($($(#[$doc:meta])* $name:ident = $method:ident $path:literal $family:ident;)*) => {
        /// Call that may reach a model server.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Endpoint { $($(#[$doc])* $name,)* }

        impl Endpoint {
            /// Every call.
            pub const ALL: &[Endpoint] = &[$(Endpoint::$name,)*];

            /// Method.
            pub const fn method(self) -> Method {
                match self { $(Endpoint::$name => Method::$method,)* }
            }

            /// Path at the model server, which is also the path at the gateway.
            pub const fn path(self) -> &'static str {
                match self { $(Endpoint::$name => $path,)* }
            }

            /// Path at the control plane, for calls of jobs that a node passes on.
            pub const fn node_path(self) -> &'static str {
                match self { $(Endpoint::$name => concat!("/v1/nodes/inference", $path),)* }
            }

            /// API that the call belongs to.
            pub const fn family(self) -> Family {
                match self { $(Endpoint::$name => Family::$family,)* }
            }
        }
    };
}

endpoints! {
    /// Lists models.
    Models = GET "/v1/models" OpenAi;
    /// Answers a conversation.
    ChatCompletions = POST "/v1/chat/completions" OpenAi;
    /// Completes a text.
    Completions = POST "/v1/completions" OpenAi;
    /// Makes vectors of texts.
    Embeddings = POST "/v1/embeddings" OpenAi;
    /// Answers a conversation, in the newer API.
    Responses = POST "/v1/responses" OpenAi;
    /// Answers a conversation.
    Messages = POST "/v1/messages" Anthropic;
    /// Version of the model server.
    Version = GET "/api/version" Ollama;
    /// Lists models.
    Tags = GET "/api/tags" Ollama;
    /// Lists models that are loaded.
    Ps = GET "/api/ps" Ollama;
    /// Answers a conversation.
    Chat = POST "/api/chat" Ollama;
    /// Completes a text.
    Generate = POST "/api/generate" Ollama;
    /// Makes vectors of texts.
    Embed = POST "/api/embed" Ollama;
    /// Describes a model.
    Show = POST "/api/show" Ollama;
}

/// Refusal of a path, or of a method for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotAllowed {
    /// No call with this path may reach a model server.
    #[error("no call of a model server that is allowed here")]
    Path,
    /// The path takes another method.
    #[error("it takes {0}")]
    Method(&'static str),
}

impl Endpoint {
    /// Call with this method and path, such as `/v1/models`.
    pub fn find(method: &Method, path: &str) -> Result<Self, NotAllowed> {
        let mut all = Self::ALL.iter().copied();
        let found = all.find(|endpoint| endpoint.path() == path);
        let found = found.ok_or(NotAllowed::Path)?;
        // HEAD is GET without the body.
        let is_read = *method == Method::HEAD && found.method() == Method::GET;
        if found.method() != *method && !is_read {
            return Err(NotAllowed::Method(if found.names_model() {
                "POST"
            } else {
                "GET"
            }));
        }
        Ok(found)
    }

    /// Whether the body of the request names a model.
    pub fn names_model(self) -> bool {
        self.method() == Method::POST
    }

    /// Whether a model computes the answer, which takes long and counts as a request under way.
    pub fn computes(self) -> bool {
        self.names_model() && self != Self::Show
    }

    /// Whether the answer is a stream, where the body of the request has this `stream`.
    pub fn is_stream(self, stream: Option<bool>) -> bool {
        let by_default = matches!(self, Self::Chat | Self::Generate);
        let can_stream = self.computes() && !matches!(self, Self::Embeddings | Self::Embed);
        can_stream && stream.unwrap_or(by_default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_found() {
        for endpoint in Endpoint::ALL {
            let found = Endpoint::find(&endpoint.method(), endpoint.path());
            assert_eq!(found, Ok(*endpoint));
            let expected = if endpoint.path().starts_with("/api/") {
                Family::Ollama
            } else if *endpoint == Endpoint::Messages {
                Family::Anthropic
            } else {
                Family::OpenAi
            };
            assert_eq!(endpoint.family(), expected);
        }
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        for path in [
            "/api/pull",
            "/api/delete",
            "/api/copy",
            "/api/push",
            "/api/create",
            "/api/blobs/sha256:0",
            "/api/chat/",
            "/api//chat",
            "/api/../api/chat",
            "/v1/chat/completions?x",
            "/V1/models",
            "/metrics",
            "/",
            "",
        ] {
            let found = Endpoint::find(&Method::POST, path);
            assert_eq!(found, Err(NotAllowed::Path), "{path}");
        }
        let found = Endpoint::find(&Method::DELETE, "/api/tags");
        assert_eq!(found, Err(NotAllowed::Method("GET")));
        let found = Endpoint::find(&Method::GET, "/api/chat");
        assert_eq!(found, Err(NotAllowed::Method("POST")));
        let found = Endpoint::find(&Method::HEAD, "/api/version");
        assert_eq!(found, Ok(Endpoint::Version));
    }

    #[test]
    fn only_ollama_streams_by_default() {
        assert!(Endpoint::Chat.is_stream(None));
        assert!(!Endpoint::Chat.is_stream(Some(false)));
        assert!(!Endpoint::ChatCompletions.is_stream(None));
        assert!(Endpoint::Messages.is_stream(Some(true)));
        assert!(!Endpoint::Embed.is_stream(Some(true)));
    }
}
