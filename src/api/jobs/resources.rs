//! Processors, memory and devices that a job asks for.

use crate::api::problem::Problem;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt};

/// Most graphics processors that a job can name.
pub const MAX_GPUS: usize = 64;
/// Longest id of a graphics processor, in bytes.
const MAX_GPU_ID_BYTES: usize = 128;
/// Smallest memory limit, in bytes: less than this, and no container starts.
pub const MIN_MEMORY_BYTES: u64 = 8 << 20;
/// Largest limit of memory, in bytes; the kernel and podman count in signed numbers.
pub const MAX_MEMORY_BYTES: u64 = 1 << 50;
/// Smallest limit of processes: init, the command, and a child.
pub const MIN_PIDS: u32 = 8;
/// Largest limit of processes: the kernel's own.
pub const MAX_PIDS: u32 = 4_194_304;
const MAX_MILLI_CPUS: f64 = 1_024_000.0;

/// Share of processors, in thousandths: 1.5 is one and a half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpus {
    milli: u32,
}

impl Cpus {
    /// Share of `cpus` processors; `None` where it is not from 0.01 to 1024.
    pub fn new(cpus: f64) -> Option<Self> {
        let milli = (cpus * 1000.0).round();
        (10.0..=MAX_MILLI_CPUS).contains(&milli).then_some(Self {
            milli: milli as u32,
        })
    }

    /// Thousandths of a processor.
    pub const fn milli(self) -> u32 {
        self.milli
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.milli) / 1000.0).fmt(f)
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.milli) / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CpusVisitor;
        impl de::Visitor<'_> for CpusVisitor {
            type Value = Cpus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0.01 to 1024")
            }

            fn visit_f64<E: de::Error>(self, cpus: f64) -> Result<Cpus, E> {
                Cpus::new(cpus).ok_or_else(|| E::invalid_value(de::Unexpected::Float(cpus), &self))
            }

            fn visit_u64<E: de::Error>(self, cpus: u64) -> Result<Cpus, E> {
                Cpus::new(cpus as f64)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(cpus), &self))
            }
        }
        deserializer.deserialize_any(CpusVisitor)
    }
}

impl JsonSchema for Cpus {
    fn schema_name() -> Cow<'static, str> {
        "Cpus".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0.01, "maximum": 1024})
    }
}

/// Graphics processors of a job, which no other job has meanwhile.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum GpuRequest {
    /// All of the node.
    All,
    /// So many of the node, at least one.
    Count(u32),
    /// These, by the ids that the node reports.
    Ids(Vec<String>),
}

impl GpuRequest {
    /// Checks ids: some, not too many, each once, with printable characters that no list or command line splits.
    pub fn check(&self, pointer: &str) -> Result<(), Problem> {
        match self {
            Self::All => Ok(()),
            Self::Count(count) if (1..=MAX_GPUS as u32).contains(count) => Ok(()),
            Self::Ids(ids) if (1..=MAX_GPUS).contains(&ids.len()) => {
                for (n, id) in ids.iter().enumerate() {
                    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
                    let pointer = format!("{pointer}/{n}");
                    if id.is_empty() || id.len() > MAX_GPU_ID_BYTES || !id.bytes().all(is_plain) {
                        let detail = "must be the id of a GPU, as `cynode nodes show` lists it, such as \"0\"";
                        return Err(Problem::field(&pointer, detail));
                    }
                    if ids[..n].contains(id) {
                        return Err(Problem::field(&pointer, "is named twice"));
                    }
                }
                Ok(())
            }
            Self::Count(_) | Self::Ids(_) => Err(Problem::field(
                pointer,
                format!("must be \"all\", a number from 1 to {MAX_GPUS}, or up to {MAX_GPUS} ids"),
            )),
        }
    }
}

impl Serialize for GpuRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Ids(ids) => ids.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for GpuRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(GpuVisitor)
    }
}

struct GpuVisitor;

impl<'de> de::Visitor<'de> for GpuVisitor {
    type Value = GpuRequest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"all\", a whole number, or an array of ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GpuRequest, E> {
        if text == "all" {
            return Ok(GpuRequest::All);
        }
        Err(E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<GpuRequest, E> {
        // One that is too large stays so, for the check.
        Ok(GpuRequest::Count(u32::try_from(count).unwrap_or(u32::MAX)))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<GpuRequest, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = items.next_element()? {
            ids.push(id);
        }
        Ok(GpuRequest::Ids(ids))
    }
}

impl JsonSchema for GpuRequest {
    fn schema_name() -> Cow<'static, str> {
        "GpuRequest".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                {"const": "all"},
                {"type": "integer", "minimum": 1, "maximum": MAX_GPUS},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_GPUS,
                    "uniqueItems": true,
                    "items": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_thousandths() {
        let read = |json: &str| serde_json::from_str(json).map(Cpus::milli).ok();
        for (json, milli) in [
            ("2", Some(2000)),
            ("0.5", Some(500)),
            ("0.01", Some(10)),
            ("1024", Some(1_024_000)),
        ] {
            assert_eq!(read(json), milli, "{json}");
        }
        for json in ["0", "0.001", "-1", "1025", "1e300", "\"2\"", "null"] {
            assert_eq!(read(json), None, "{json}");
        }
        assert_eq!(Cpus::new(1.5).unwrap().to_string(), "1.5");
    }

    #[test]
    fn gpus_are_all_some_or_named() {
        let read = |json: &str| serde_json::from_str::<GpuRequest>(json).ok();
        let is_valid = |json: &str| read(json).is_some_and(|gpus| gpus.check("/gpus").is_ok());
        for json in ["\"all\"", "1", "64", "[\"0\"]", "[\"GPU-1\",\"GPU-2\"]"] {
            assert!(is_valid(json), "{json}");
            let written = serde_json::to_string(&read(json).unwrap()).unwrap();
            assert_eq!(written, json);
        }
        for json in [
            "0",
            "65",
            "-1",
            "\"some\"",
            "[]",
            "[\"\"]",
            "[\"a,b\"]",
            "[\"0\",\"0\"]",
            "[0]",
            "true",
        ] {
            assert!(!is_valid(json), "{json}");
        }
    }
}
