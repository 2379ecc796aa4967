//! Models that can be asked now, and the choice of one where none was named.

use super::super::{api_client::ApiClient, models::explain_absence, print::clean};
use crate::exit::{Exit, Failure};
use http::Method;
use serde::Deserialize;
use serde_json::json;

/// Most models that are looked at for what they can do.
const MAX_SHOWN: usize = 8;

/// Answer of `GET /v1/models`.
#[derive(Deserialize)]
struct ModelList {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Answer of `GET /api/ps`: models in memory.
#[derive(Deserialize)]
struct LoadedModels {
    models: Vec<LoadedModel>,
}

#[derive(Deserialize)]
struct LoadedModel {
    name: String,
}

/// Names of the models that nodes serve now, in order. Fails where there is none.
pub(super) fn list(api: &mut ApiClient) -> Result<Vec<String>, Failure> {
    let list: ModelList = api.get("/v1/models")?;
    let names = list.data.into_iter().map(|model| model.id);
    // The line editor writes names to the terminal as they are.
    let mut names: Vec<String> = names.filter(|name| clean(name) == *name).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(Failure::new(Exit::NotFound, explain_absence(api)));
    }
    Ok(names)
}

/// Answer of `POST /api/show`, as far as it is read.
#[derive(Deserialize)]
struct ShownModel {
    capabilities: Vec<String>,
}

/// The model that answers soonest: one that is loaded, else the first. One that can't chat, such as one that only makes
/// vectors, is taken only where no other is found.
pub(super) fn choose(api: &mut ApiClient, names: &[String]) -> String {
    let loaded = match names {
        [_] => None,
        // An orchestrator that can't tell is no reason to fail: any model will do.
        _ => api.get::<LoadedModels>("/api/ps").ok(),
    };
    let loaded = loaded.map_or_else(Vec::new, |loaded| loaded.models);
    let is_loaded = |name: &&String| loaded.iter().any(|model| model.name == **name);
    let (mut ordered, others): (Vec<_>, Vec<_>) = names.iter().partition(is_loaded);
    ordered.extend(others);
    let chosen = match names {
        [_] => None,
        _ => ordered
            .iter()
            .take(MAX_SHOWN)
            .find(|name| can_chat(api, name)),
    };
    let chosen = chosen.or(ordered.first());
    chosen.map(|name| (*name).clone()).unwrap_or_default()
}

/// Whether a model can chat, as far as its server tells.
fn can_chat(api: &mut ApiClient, name: &str) -> bool {
    let body = json!({ "model": name });
    let shown = api.call::<ShownModel>(Method::POST, "/api/show", Some(&body));
    shown.map_or(true, |shown| {
        shown.capabilities.iter().any(|known| known == "completion")
    })
}

/// Fails where a model is not among those that can be asked; the failure names these.
pub(super) fn check(name: &str, names: &[String]) -> Result<(), Failure> {
    let is_same = |known: &String| known.strip_suffix(":latest").unwrap_or(known) == name;
    if names.iter().any(|known| known == name || is_same(known)) {
        return Ok(());
    }
    let text = format!(
        "no node serves the model {name:?} now; there are: {}",
        names.join(", ")
    );
    Err(Failure::new(Exit::NotFound, clean(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_model_is_answered_with_known_ones() {
        let names = ["a:latest", "b:1"].map(str::to_owned);
        for known in ["a", "a:latest", "b:1"] {
            check(known, &names).unwrap();
        }
        for unknown in ["b", "a:1", ""] {
            let failure = check(unknown, &names).unwrap_err();
            assert!(failure.message.ends_with("there are: a:latest, b:1"));
        }
    }
}
