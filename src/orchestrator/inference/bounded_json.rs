//! JSON text from a deserializer, without spaces and of limited length. Unlike a `serde_json::Value`, which may be
//! sixteen times as large as its text, it needs no more memory than that.

use serde::{
    Serialize,
    de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor},
};
use std::fmt;

/// JSON text as far as it fits.
pub(super) struct BoundedJson {
    text: Vec<u8>,
    limit: usize,
    is_cut: bool,
}

impl BoundedJson {
    /// Empty text of at most `limit` bytes.
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            text: Vec::new(),
            limit,
            is_cut: false,
        }
    }

    /// The whole text; `None` where it did not fit.
    pub(super) fn finish(self) -> Option<Box<[u8]>> {
        (!self.is_cut).then(|| self.text.into_boxed_slice())
    }

    fn put(&mut self, bytes: &[u8]) {
        self.is_cut |= self.text.len() + bytes.len() > self.limit;
        if !self.is_cut {
            self.text.extend_from_slice(bytes);
        }
    }

    fn put_value<E: serde::de::Error>(&mut self, value: impl Serialize) -> Result<(), E> {
        // A value that does not fit need not be written: text that is cut is not used.
        if !self.is_cut {
            let text = serde_json::to_vec(&value).map_err(E::custom)?;
            self.put(&text);
        }
        Ok(())
    }
}

/// Appends the next value.
impl<'de> DeserializeSeed<'de> for &mut BoundedJson {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut BoundedJson {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.put_value(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.put_value(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.put_value(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.put_value(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.put_value(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.put_value(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.put(b"[");
        let mut separator: &[u8] = b"";
        loop {
            let at = self.text.len();
            self.put(separator);
            if list.next_element_seed(&mut *self)?.is_none() {
                self.text.truncate(at);
                break;
            }
            separator = b",";
        }
        self.put(b"]");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.put(b"{");
        let mut separator: &[u8] = b"";
        loop {
            let at = self.text.len();
            self.put(separator);
            if map.next_key_seed(&mut *self)?.is_none() {
                self.text.truncate(at);
                break;
            }
            self.put(b":");
            map.next_value_seed(&mut *self)?;
            separator = b",";
        }
        self.put(b"}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Deserializer, Value, json};

    /// The text of a document, and the bytes that were held of it.
    fn copied(document: &str, limit: usize) -> (Option<String>, usize) {
        let mut copy = BoundedJson::new(limit);
        let mut deserializer = Deserializer::from_str(document);
        (&mut copy).deserialize(&mut deserializer).unwrap();
        deserializer.end().unwrap();
        let held = copy.text.len();
        let text = copy.finish();
        (
            text.map(|text| String::from_utf8(text.into()).unwrap()),
            held,
        )
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..5).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn text_is_compact_document(value in any_json(), limit in 0_usize..400) {
            let spaced = serde_json::to_string_pretty(&value).unwrap();
            let compact = serde_json::to_string(&value).unwrap();
            let (text, held) = copied(&spaced, limit);
            prop_assert!(held <= limit);
            match text {
                Some(text) => prop_assert_eq!(text, compact),
                None => prop_assert!(compact.len() > limit),
            }
        }
    }

    #[test]
    fn long_document_is_read_over() {
        let document = format!("[{}[]]", "[],".repeat(1000));
        assert_eq!(copied(&document, 100), (None, 100));
    }
}
