//! List of models in Ollama's shape, put together from the answers of nodes. Pure.
//!
//! Nodes are not trusted with the size of their answers: an entry is kept as its text, and the entries of a node and of the
//! whole list are limited.

use super::bounded_json::BoundedJson;
use crate::api::nodes::ModelDetails;
use serde::{
    Deserialize,
    de::{Deserializer, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// Most models of a node.
const MAX_MODELS: usize = 256;
/// Longest entry of a model, in bytes.
const MAX_ENTRY_BYTES: usize = 16 * 1024;
/// Most bytes of all entries.
const MAX_LIST_BYTES: usize = 8 * 1024 * 1024;
/// Memory of an entry besides its text and its name, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Models, each once.
#[derive(Default)]
pub(super) struct ModelList {
    models: BTreeMap<String, Entry>,
    bytes: usize,
}

struct Entry {
    /// Number of the node: of several that have the model, the first one describes it.
    node: usize,
    text: Box<[u8]>,
}

impl Entry {
    /// Memory of an entry with this name.
    fn bytes(&self, name: &str) -> usize {
        self.text.len() + name.len() + ENTRY_OVERHEAD_BYTES
    }
}

/// Answer of a node.
#[derive(Deserialize)]
struct Answer {
    models: Option<Texts>,
}

/// Texts of the first entries of a list, without those that are too long. Others are read over.
struct Texts(Vec<Box<[u8]>>);

impl ModelList {
    /// Adds the models in the answer of a node. Returns whether it was a list.
    pub(super) fn add(&mut self, node: usize, answer: &[u8]) -> bool {
        let Ok(answer) = serde_json::from_slice::<Answer>(answer) else {
            return false;
        };
        for text in answer.models.into_iter().flat_map(|texts| texts.0) {
            if let Some(name) = name_of(&text) {
                self.add_entry(name, Entry { node, text });
            }
        }
        true
    }

    /// Adds a model, unless an earlier node describes it, or the list is full.
    fn add_entry(&mut self, name: String, entry: Entry) {
        let current = self.models.get(&name);
        if current.is_some_and(|current| current.node <= entry.node) {
            return;
        }
        let freed = current.map_or(0, |current| current.bytes(&name));
        let bytes = self.bytes - freed + entry.bytes(&name);
        if bytes <= MAX_LIST_BYTES {
            self.bytes = bytes;
            self.models.insert(name, entry);
        }
    }

    /// List as JSON, by name.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let texts: Vec<_> = self.models.values().map(|entry| &*entry.text).collect();
        [b"{\"models\":[", &*texts.join(&b","[..]), b"]}"].concat()
    }
}

/// Name of the model that an entry describes; `None` where the entry is invalid.
fn name_of(entry: &[u8]) -> Option<String> {
    let entry: Value = serde_json::from_slice(entry).ok()?;
    let name = entry["name"].as_str().or_else(|| entry["model"].as_str())?;
    ModelDetails::is_valid_name(name).then(|| name.to_owned())
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FirstTexts).map(Self)
    }
}

struct FirstTexts;

impl<'de> Visitor<'de> for FirstTexts {
    type Value = Vec<Box<[u8]>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of models")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        for _ in 0..MAX_MODELS {
            let mut text = BoundedJson::new(MAX_ENTRY_BYTES);
            if list.next_element_seed(&mut text)?.is_none() {
                return Ok(texts);
            }
            texts.extend(text.finish());
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(answers: &[(usize, &str)]) -> Value {
        let mut list = ModelList::default();
        for (node, answer) in answers {
            list.add(*node, answer.as_bytes());
        }
        serde_json::from_slice(&list.to_json()).unwrap()
    }

    #[test]
    fn first_node_describes_model() {
        let first = r#"{"models": [{"name": "b", "size": 1}, {"model": "a", "x": [1.0e2]}]}"#;
        let second = r#"{"other": 1, "models": [{"name": "b", "size": 2}, {"name": "c"}]}"#;
        let merged = json!({"models": [{"model": "a", "x": [1.0e2]}, {"name": "b", "size": 1}, {"name": "c"}]});
        assert_eq!(list(&[(0, first), (1, second)]), merged);
        assert_eq!(list(&[(1, second), (0, first)]), merged, "in any order");
    }

    #[test]
    fn invalid_entries_are_left_out() {
        let long = format!(
            r#"{{"name": "long", "x": "{}"}}"#,
            "x".repeat(MAX_ENTRY_BYTES)
        );
        let answer = format!(
            r#"{{"models": [{{"name": "a"}}, 1, [], {{"name": "\u001b[2J"}}, {long}, {{"name": "b"}}]}}"#
        );
        let models = json!({"models": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(list(&[(0, &answer)]), models);
        let deep = format!(r#"{{"models": [{}{}]}}"#, "[".repeat(200), "]".repeat(200));
        for invalid in [
            &deep,
            "",
            "[]",
            "{}",
            r#"{"models": null}"#,
            r#"{"models": {}}"#,
            r#"{"models": [}"#,
        ] {
            assert_eq!(list(&[(0, invalid), (1, &answer)]), models, "{invalid}");
        }
    }

    #[test]
    fn entries_of_node_and_list_are_limited() {
        let entry =
            |name: usize, length| json!({"name": name.to_string(), "x": "x".repeat(length)});
        let many: Vec<_> = (0..2 * MAX_MODELS).map(|n| entry(n, 0)).collect();
        let many = json!({"models": many}).to_string();
        assert_eq!(
            list(&[(0, &many)])["models"].as_array().unwrap().len(),
            MAX_MODELS
        );
        let mut list = ModelList::default();
        for node in (0..1000).rev() {
            let large = json!({"models": [entry(node, 15 * 1024), entry(9999, node)]}).to_string();
            list.add(node, large.as_bytes());
            assert!(list.bytes <= MAX_LIST_BYTES);
        }
        let kept = list.models.iter();
        let kept = kept.map(|(name, entry)| entry.bytes(name));
        assert_eq!(kept.sum::<usize>(), list.bytes);
        assert!(list.bytes > MAX_LIST_BYTES - MAX_ENTRY_BYTES);
    }
}
