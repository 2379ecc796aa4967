//! Values of secrets on their way to the command of a job: in the body of one request, in the memory of worker and shim,
//! and in the environment of the command. They are on no disk on that way, and no `Debug` shows them.

use super::SecretRef;
use crate::api::problem::Problem;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{collections::BTreeMap, fmt};
use zeroize::Zeroizing;

/// Most bytes of all secrets of one job: as many as one may have. What masks them takes memory of the node by their bytes,
/// outside of the job's limits.
pub const MAX_JOB_SECRET_BYTES: usize = 64 * 1024;

/// Value of a secret, which is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<String>);

impl SecretValue {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<Zeroizing<String>> for SecretValue {
    fn from(value: Zeroizing<String>) -> Self {
        Self(value)
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for SecretValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// Values of a job's secrets, by the variables that get them.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretValues(BTreeMap<String, SecretValue>);

impl SecretValues {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|value| value.expose().len()).sum()
    }

    /// Variables and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()))
    }

    /// Whether there is a value for each of these secrets.
    pub fn covers(&self, refs: &[SecretRef]) -> bool {
        refs.iter().all(|secret| self.0.contains_key(&secret.env))
    }

    /// Checks that these are the values of the secrets that a job names, and no others.
    pub fn check(&self, pointer: &str, refs: &[SecretRef]) -> Result<(), Problem> {
        let names_all = self
            .0
            .keys()
            .all(|env| refs.iter().any(|secret| secret.env == *env));
        if !names_all || !self.covers(refs) {
            let detail =
                "must hold a value for each of the secrets that the sandbox names, and no other";
            return Err(Problem::field(pointer, detail));
        }
        if self.bytes() > MAX_JOB_SECRET_BYTES {
            let detail = format!("must have at most {MAX_JOB_SECRET_BYTES} bytes in all");
            return Err(Problem::field(pointer, detail));
        }
        for (n, value) in self.0.values().enumerate() {
            super::check_value(value.expose().as_bytes()).map_err(|problem| {
                // Not by the name of the variable: the message is the same for each.
                Problem::field(
                    pointer,
                    format!(
                        "has a value (number {n}) that is invalid: {}",
                        problem.detail
                    ),
                )
            })?;
        }
        Ok(())
    }
}

impl FromIterator<(String, SecretValue)> for SecretValues {
    fn from_iter<I: IntoIterator<Item = (String, SecretValue)>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refs(names: &[&str]) -> Vec<SecretRef> {
        let refs = names.iter().map(|name| SecretRef {
            name: name.parse().unwrap(),
            env: (*name).to_owned(),
            host: None,
            header: None,
        });
        refs.collect()
    }

    #[test]
    fn debug_shows_no_value() {
        let values: SecretValues = serde_json::from_value(json!({"A": "swordfish"})).unwrap();
        assert_eq!(format!("{values:?}"), "SecretValues({\"A\": ***})");
        assert_eq!(
            serde_json::to_value(&values).unwrap(),
            json!({"A": "swordfish"})
        );
    }

    #[test]
    fn values_are_those_that_job_names() {
        let values: SecretValues = serde_json::from_value(json!({"A": "x", "B": "y"})).unwrap();
        assert!(values.check("/secrets", &refs(&["A", "B"])).is_ok());
        assert!(values.check("/secrets", &refs(&["A"])).is_err());
        assert!(values.check("/secrets", &refs(&["A", "B", "C"])).is_err());
        assert!(!values.covers(&refs(&["C"])) && values.covers(&[]));
        let nul: SecretValues = serde_json::from_value(json!({"A": "x\0"})).unwrap();
        assert!(nul.check("/secrets", &refs(&["A"])).is_err());
    }
}
