//! Operations of the model API. Bodies and answers are those of OpenAI, Anthropic and Ollama, who document them; only
//! what is read or made here is described.

use super::operation::{Operation, operation};
use crate::inference::{Endpoint, Family, MAX_MODEL_BYTES};
use http::Method;
use schemars::{Schema, SchemaGenerator, json_schema};

fn object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string"})
}

fn named_model(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_BYTES},
            "stream": {"type": ["boolean", "null"]},
        },
    })
}

fn model(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string", "description": "Slugs of the nodes that have the model."},
        },
    })
}

fn models(generator: &mut SchemaGenerator) -> Schema {
    let model = model(generator);
    json_schema!({
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": model}},
    })
}

/// Id and summary of a call.
const fn names(endpoint: Endpoint) -> (&'static str, &'static str) {
    match endpoint {
        Endpoint::Models => (
            "list_models",
            "List the models of all nodes that can serve now",
        ),
        Endpoint::ChatCompletions => (
            "create_chat_completion",
            "Answer a conversation, in OpenAI's API",
        ),
        Endpoint::Completions => ("create_completion", "Complete a text, in OpenAI's API"),
        Endpoint::Embeddings => (
            "create_embeddings",
            "Make vectors of texts, in OpenAI's API",
        ),
        Endpoint::Responses => (
            "create_response",
            "Answer a conversation, in OpenAI's newer API",
        ),
        Endpoint::Messages => (
            "create_message",
            "Answer a conversation, in Anthropic's API",
        ),
        Endpoint::Version => (
            "ollama_version",
            "Show the version of a model server, in Ollama's API",
        ),
        Endpoint::Tags => (
            "ollama_tags",
            "List the models of all nodes, in Ollama's API",
        ),
        Endpoint::Ps => (
            "ollama_ps",
            "List the models that are loaded, in Ollama's API",
        ),
        Endpoint::Chat => ("ollama_chat", "Answer a conversation, in Ollama's API"),
        Endpoint::Generate => ("ollama_generate", "Complete a text, in Ollama's API"),
        Endpoint::Embed => ("ollama_embed", "Make vectors of texts, in Ollama's API"),
        Endpoint::Show => ("ollama_show", "Describe a model, in Ollama's API"),
    }
}

const fn shape(family: Family) -> &'static str {
    match family {
        Family::OpenAi => "Error in the shape of OpenAI's API.",
        Family::Anthropic => "Error in the shape of Anthropic's API.",
        Family::Ollama => "Error in the shape of Ollama's API.",
    }
}

fn call(endpoint: Endpoint) -> Operation {
    let (id, summary) = names(endpoint);
    let family = endpoint.family();
    let call = operation(endpoint.method(), endpoint.path(), id, summary);
    let call = call.errors_in(shape(family));
    if endpoint == Endpoint::Models {
        return call.returns_media("application/json", "", models);
    }
    let call = call
        .fails_with(503)
        .returns_media("application/json", "", object);
    if !endpoint.names_model() {
        return call;
    }
    let call = call.body_like(named_model);
    let call = [404, 502, 504]
        .into_iter()
        .fold(call, Operation::fails_with);
    let streams = [Some(true), None];
    match (
        family.has_events(),
        streams.map(|stream| endpoint.is_stream(stream)),
    ) {
        (true, [true, _]) => call.returns_media("text/event-stream", "With `stream: true`.", text),
        (false, [true, _]) => call.returns_media(
            "application/x-ndjson",
            "Lines of JSON, unless `stream` is false.",
            text,
        ),
        _ => call,
    }
}

/// All operations.
pub(super) fn all() -> Vec<Operation> {
    let mut all: Vec<_> = Endpoint::ALL.iter().copied().map(call).collect();
    all.push(
        operation(
            Method::GET,
            "/v1/models/{*id}",
            "get_model",
            "Show a model, by its name",
        )
        .errors_in(shape(Family::OpenAi))
        .returns_media("application/json", "", model),
    );
    all
}
