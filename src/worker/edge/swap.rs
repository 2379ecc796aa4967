//! Swap of placeholders for the values of secrets, in the headers of a request. Pure.
//!
//! A placeholder is replaced in the one header that its secret names, as often as it stands there, also inside of the
//! credentials of `Basic`, which are base64. Anywhere else it passes as it is: the job could otherwise have the host
//! give back what it was not meant to see.

use crate::api::secrets::{SecretName, SecretValue};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};
use std::fmt;
use zeroize::Zeroizing;

/// Most bytes of all values that are made in one request: a head of the longest, and a secret of the longest. A job could
/// have one placeholder stand for the largest secret a thousand times.
const MAX_BYTES: usize = 128 * 1024;
/// Scheme of credentials that are base64, as it stands before them.
const BASIC: &[u8] = b"basic ";

/// Placeholder and what takes its place.
#[derive(Clone)]
pub(super) struct Swap {
    pub(super) name: SecretName,
    pub(super) header: HeaderName,
    pub(super) placeholder: String,
    pub(super) value: SecretValue,
}

/// Reason for which a request can't be sent with the value of a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::worker) enum SwapFault {
    /// No header may hold the value.
    NoHeader(SecretName),
    /// The header would be too long.
    TooLong(SecretName),
    /// The request is in the clear, and the secret is for TLS.
    InClear(SecretName),
}

impl fmt::Display for SwapFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader(name) => write!(
                f,
                "the value of the secret {name} has a line break or another control character, which no header can hold; \
                 set it again as one line without: cynode secrets set {name}"
            ),
            Self::TooLong(name) => write!(
                f,
                "with the value of the secret {name} the headers of this request are longer than {MAX_BYTES} bytes; name it \
                 once in a request"
            ),
            Self::InClear(name) => write!(
                f,
                "this request is plain HTTP, and the secret {name} goes to this host inside of TLS alone; ask for https://, or \
                 start the job with --secret {name}@http://HOST:PORT (a host that is not in egress.terminate)"
            ),
        }
    }
}

/// Replaces placeholders in headers; whether there was one.
pub(super) fn swap_in<'a>(
    headers: &mut HeaderMap,
    swaps: impl Iterator<Item = &'a Swap>,
) -> Result<bool, SwapFault> {
    let (mut room, mut is_swapped) = (MAX_BYTES, false);
    for swap in swaps {
        let Entry::Occupied(mut found) = headers.entry(&swap.header) else {
            continue;
        };
        for value in found.iter_mut() {
            if let Some(swapped) = swap.value_of(value, room)? {
                room = room.saturating_sub(swapped.len());
                *value = swapped;
                is_swapped = true;
            }
        }
    }
    Ok(is_swapped)
}

impl Swap {
    /// Whether its header has the placeholder.
    pub(super) fn is_meant_in(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.header).iter();
        values.any(|value| !matches!(self.value_of(value, MAX_BYTES), Ok(None)))
    }

    /// Value of a header with the placeholder replaced; `None` where it has none.
    fn value_of(
        &self,
        header: &HeaderValue,
        room: usize,
    ) -> Result<Option<HeaderValue>, SwapFault> {
        let bytes = header.as_bytes();
        let mut swapped = self.replaced(bytes, room)?;
        if swapped.is_none()
            && let Some((scheme, credentials)) = bytes.split_at_checked(BASIC.len())
            && scheme.eq_ignore_ascii_case(BASIC)
            && let Ok(plain) = STANDARD.decode(credentials.trim_ascii())
            && let Some(plain) = self.replaced(&Zeroizing::new(plain), room)?
        {
            let encoded = Zeroizing::new(STANDARD.encode(&*plain));
            swapped = Some(Zeroizing::new([scheme, encoded.as_bytes()].concat()));
        }
        let Some(swapped) = swapped else {
            return Ok(None);
        };
        let mut value = HeaderValue::from_bytes(&swapped)
            .map_err(|_| SwapFault::NoHeader(self.name.clone()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Bytes with the placeholder replaced; `None` where they have none.
    fn replaced(&self, bytes: &[u8], room: usize) -> Result<Option<Zeroizing<Vec<u8>>>, SwapFault> {
        let (placeholder, value) = (self.placeholder.as_bytes(), self.value.expose().as_bytes());
        let (mut rest, mut pieces) = (bytes, Vec::new());
        while let Some(at) = position(rest, placeholder) {
            pieces.push(&rest[..at]);
            rest = &rest[at + placeholder.len()..];
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        let kept = bytes.len() - pieces.len() * placeholder.len();
        let length = kept.saturating_add(pieces.len().saturating_mul(value.len()));
        if length > room {
            return Err(SwapFault::TooLong(self.name.clone()));
        }
        // With its capacity, so that no copy is left behind where it grows.
        let mut replaced = Zeroizing::new(Vec::with_capacity(length));
        for piece in pieces {
            replaced.extend_from_slice(piece);
            replaced.extend_from_slice(value);
        }
        replaced.extend_from_slice(rest);
        Ok(Some(replaced))
    }
}

/// Position of the first occurrence of a part that is not empty.
fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLACEHOLDER: &str = "cynode-secret-TOKEN-0123456789abcdef0123456789abcdef";

    fn swap(value: &str) -> Swap {
        Swap {
            name: "TOKEN".parse().unwrap(),
            header: HeaderName::from_static("authorization"),
            placeholder: PLACEHOLDER.to_owned(),
            value: Zeroizing::new(value.to_owned()).into(),
        }
    }

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn swapped(value: &str, header: &str) -> Result<String, SwapFault> {
        let mut headers = headers(&[("authorization", header)]);
        swap_in(&mut headers, [swap(value)].iter())?;
        Ok(headers["authorization"].to_str().unwrap().to_owned())
    }

    #[test]
    fn only_the_named_header_is_changed() {
        let bearer = format!("Bearer {PLACEHOLDER}");
        let mut headers = headers(&[
            ("authorization", bearer.as_str()),
            ("authorization", "other"),
            ("authorization", bearer.as_str()),
            ("x-token", bearer.as_str()),
        ]);
        assert_eq!(swap_in(&mut headers, [swap("swordfish")].iter()), Ok(true));
        let values: Vec<_> = headers.get_all("authorization").iter().collect();
        assert_eq!(values, ["Bearer swordfish", "other", "Bearer swordfish"]);
        assert!(values[0].is_sensitive() && !values[1].is_sensitive());
        assert_eq!(headers["x-token"], bearer.as_str());
        headers.remove("authorization");
        assert_eq!(swap_in(&mut headers, [swap("swordfish")].iter()), Ok(false));
    }

    #[test]
    fn credentials_of_basic_are_swapped() {
        let encoded = STANDARD.encode(format!("me:{PLACEHOLDER}"));
        let expected = STANDARD.encode("me:line\nbreak");
        for scheme in ["Basic ", "basic "] {
            let header = format!("{scheme}{encoded}");
            let found = swapped("line\nbreak", &header).unwrap();
            assert_eq!(found, format!("{scheme}{expected}"));
        }
        for untouched in [
            format!("Bearer {encoded}"),
            "Basic ?".to_owned(),
            "Basic".to_owned(),
        ] {
            assert_eq!(swapped("x", &untouched).unwrap(), untouched);
        }
    }

    #[test]
    fn unfit_values_are_named_and_not_shown() {
        let fault = swapped("sword\r\nfish: 1", PLACEHOLDER).unwrap_err();
        assert!(
            fault
                .to_string()
                .contains("the secret TOKEN has a line break")
        );
        assert!(!fault.to_string().contains("fish"), "{fault}");
        let long = "x".repeat(60_000);
        assert_eq!(swapped(&long, PLACEHOLDER).unwrap().len(), 60_000);
        let fault = swapped(&long, &PLACEHOLDER.repeat(3)).unwrap_err();
        assert_eq!(fault, SwapFault::TooLong("TOKEN".parse().unwrap()));
        // Over several headers, too.
        let mut many = headers(&[("authorization", PLACEHOLDER); 3]);
        swap_in(&mut many, [swap(&long)].iter()).unwrap_err();
    }

    #[test]
    fn secrets_share_a_header() {
        let mut other = swap("second");
        other.placeholder = PLACEHOLDER.replace("TOKEN", "OTHER");
        let both = format!("{PLACEHOLDER} {}", other.placeholder);
        let mut found = headers(&[("authorization", both.as_str())]);
        swap_in(&mut found, [swap("first"), other].iter()).unwrap();
        assert_eq!(found["authorization"], "first second");
    }

    proptest! {
        #[test]
        fn every_occurrence_is_replaced(
            pieces in proptest::collection::vec("[ -~]{0,20}", 1..6),
            value in "[!-~]{1,20}",
        ) {
            let header = pieces.join(PLACEHOLDER);
            let expected = header.replace(PLACEHOLDER, &value);
            let found = swap(&value).value_of(&HeaderValue::from_str(&header).unwrap(), MAX_BYTES);
            let found = found.unwrap().map(|value| value.to_str().unwrap().to_owned());
            prop_assert_eq!(found, (pieces.len() > 1).then_some(expected));
        }

        #[test]
        fn credentials_are_replaced_as_plain_text(
            pieces in proptest::collection::vec(".{0,20}", 1..4),
            value in ".{1,20}",
        ) {
            let plain = pieces.join(PLACEHOLDER);
            let header = format!("Basic {}", STANDARD.encode(&plain));
            let expected = format!("Basic {}", STANDARD.encode(plain.replace(PLACEHOLDER, &value)));
            let found = swapped(&value, &header).unwrap();
            prop_assert_eq!(found, expected);
        }
    }
}
