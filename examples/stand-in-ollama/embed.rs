//! Vectors of texts, in Ollama's shape and in OpenAI's: the number of bytes of a text, and that of its words.

use super::talk::Dialect;
use serde_json::{Value, json};

/// Answer with a vector for each text of a request.
pub(crate) fn answer(dialect: Dialect, wish: &Value, model: &str) -> Value {
    let texts: Vec<&str> = match &wish["input"] {
        Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect(),
        text => text.as_str().into_iter().collect(),
    };
    let words = |text: &str| text.split_whitespace().count();
    let tokens: usize = texts.iter().copied().map(words).sum();
    let vectors = texts
        .iter()
        .map(|text| json!([text.len() as f64, words(text) as f64]));
    if dialect != Dialect::OpenAi {
        let vectors: Vec<_> = vectors.collect();
        return json!({"model": model, "embeddings": vectors, "prompt_eval_count": tokens});
    }
    let vectors = vectors.enumerate();
    let data =
        vectors.map(|(n, vector)| json!({"object": "embedding", "index": n, "embedding": vector}));
    json!({
        "object": "list", "model": model, "data": data.collect::<Vec<_>>(),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}
