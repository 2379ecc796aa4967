//! Ranges of bytes: of a download (`Range`), and of a part of an upload (`Content-Range`); RFC 9110, section 14.

use std::ops::Range;

/// Part of a body that a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Requested {
    /// All of it: no range is asked for, or several, or one that is not understood, which may all be ignored.
    Whole,
    /// One range.
    Part(Range<u64>),
    /// A range that begins beyond the end.
    Unsatisfiable,
}

/// Range of a header `Range`, of a body of `size` bytes.
pub(crate) fn requested(header: Option<&str>, size: u64) -> Requested {
    let Some((first, last)) = header
        .and_then(|header| header.trim().strip_prefix("bytes="))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Requested::Whole;
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Some(first), None) if last.is_empty() => first..size,
        (None, Some(length)) if first.is_empty() => size.saturating_sub(length)..size,
        _ => return Requested::Whole,
    };
    if range.start < range.end {
        Requested::Part(range)
    } else {
        Requested::Unsatisfiable
    }
}

/// Number of digits alone; `parse` would also take a sign.
fn number(text: &str) -> Option<u64> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_digits)
}

/// Part of an upload that a request sends, as its header `Content-Range` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UploadPart {
    /// These bytes: `bytes 0-99/1000`.
    Bytes {
        /// Offsets of the bytes.
        range: Range<u64>,
        /// Number of bytes of the whole.
        total: u64,
    },
    /// None; the request asks how much has arrived: `bytes */1000`.
    Query {
        /// Number of bytes of the whole.
        total: u64,
    },
}

impl UploadPart {
    /// Reads a header `Content-Range`; `None` where it is neither of the forms above.
    pub fn parse(header: &str) -> Option<Self> {
        let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
        let total = number(total)?;
        if range == "*" {
            return Some(Self::Query { total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let range = first..last.checked_add(1)?;
        (first <= last && range.end <= total).then_some(Self::Bytes { range, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_downloads() {
        let of = |header: &str, size| requested(Some(header), size);
        let part = |range| Requested::Part(range);
        for (header, expected) in [
            ("bytes=0-", part(0..10)),
            ("bytes=0-0", part(0..1)),
            ("bytes=3-5", part(3..6)),
            ("bytes=3-99", part(3..10)),
            ("bytes=-4", part(6..10)),
            ("bytes=-99", part(0..10)),
            ("bytes=10-", Requested::Unsatisfiable),
            ("bytes=99-100", Requested::Unsatisfiable),
            ("bytes=-0", Requested::Unsatisfiable),
            ("bytes=0-1,3-4", Requested::Whole),
            ("bytes=5-3", Requested::Whole),
            ("bytes=+1-2", Requested::Whole),
            ("bytes=", Requested::Whole),
            ("bytes=-", Requested::Whole),
            ("lines=1-2", Requested::Whole),
        ] {
            assert_eq!(of(header, 10), expected, "{header}");
        }
        assert_eq!(requested(None, 10), Requested::Whole);
        assert_eq!(of("bytes=0-", 0), Requested::Unsatisfiable);
        let largest = format!("bytes=0-{}", u64::MAX);
        assert_eq!(of(&largest, 10), part(0..10));
    }

    #[test]
    fn parts_of_uploads() {
        let bytes = |range, total| Some(UploadPart::Bytes { range, total });
        for (header, expected) in [
            ("bytes 0-0/1", bytes(0..1, 1)),
            ("bytes 5-9/10", bytes(5..10, 10)),
            ("bytes */10", Some(UploadPart::Query { total: 10 })),
            ("bytes */0", Some(UploadPart::Query { total: 0 })),
            ("bytes 5-10/10", None),
            ("bytes 5-4/10", None),
            ("bytes 0-4/*", None),
            ("bytes */*", None),
            ("bytes=0-4/5", None),
            ("bytes -1-4/5", None),
            ("", None),
        ] {
            assert_eq!(UploadPart::parse(header), expected, "{header}");
        }
        let largest = format!("bytes 0-{0}/{0}", u64::MAX);
        assert_eq!(UploadPart::parse(&largest), None);
    }

    proptest! {
        #[test]
        fn part_lies_within_body(header in "bytes=[0-9]{0,4}-[0-9]{0,4}", size in 0..2000u64) {
            if let Requested::Part(range) = requested(Some(&header), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
