//! Value parsers of flags and of `node.yaml`. Each error names the form that is expected, not how parsing
//! failed.

use crate::api::{
    jobs::PullPolicy,
    size::{ByteSize, InvalidSize},
};
use ipnet::IpNet;
use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::{Bound, RangeBounds},
    str::FromStr,
    time::Duration,
};

/// Parses a duration: `90`, `90s`, `5m`, `2h`, `1d` or `500ms`; a bare number is seconds. One that is too long
/// to count is the longest that can be counted.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const MILLIS: [(&str, u64); 6] = [
        ("ms", 1),
        ("", 1000),
        ("s", 1000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
    ];
    parse_quantity(text, &MILLIS)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a duration such as 90s, 5m or 2h".to_owned())
}

/// Parses a pull policy.
pub(super) fn parse_pull(text: &str) -> Result<PullPolicy, String> {
    text.parse()
        .map_err(|_| "expected missing, always or never".to_owned())
}

/// Parses a duration, or `off` as zero.
pub(crate) fn parse_duration_or_off(text: &str) -> Result<Duration, String> {
    match text {
        "off" => Ok(Duration::ZERO),
        _ => parse_duration(text).map_err(|expected| format!("{expected}, or off")),
    }
}

/// Parses a size: `64MiB` or `2GiB`; a bare number is bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    text.parse()
        .map(|ByteSize(bytes)| bytes)
        .map_err(|error: InvalidSize| error.to_string())
}

/// A whole number times its unit, at most what an u64 can hold.
fn parse_quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(number.parse::<u64>().ok()?.saturating_mul(*factor))
}

/// Parses a lease. A shorter one would reschedule a job at each lost packet.
pub(super) fn parse_lease(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        lease if lease < Duration::from_secs(1) => Err("expected 1s or more".to_owned()),
        lease => Ok(lease),
    }
}

/// Parses a network, or an address as a network of one.
pub(crate) fn parse_network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = address.or_else(|_| text.parse());
    network
        .map_err(|_| "expected an address or network such as 192.168.1.5 or 10.0.0.0/8".to_owned())
}

/// Parses an address to listen at.
pub(crate) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "expected ADDRESS:PORT, such as 0.0.0.0:12090 or [::]:12090".to_owned())
}

/// A parser of whole numbers in `range`.
pub(crate) fn number<T, R>(
    range: R,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display,
    R: RangeBounds<T> + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| match (range.start_bound(), range.end_bound()) {
            (Bound::Included(least), Bound::Included(most)) => {
                format!("expected a whole number from {least} to {most}")
            }
            (Bound::Included(least), _) => format!("expected a whole number, {least} or more"),
            _ => "expected a whole number".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn common_duration_formats_are_accepted() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("2h", 7200),
            ("1d", 86_400),
        ] {
            let expected = Ok(Duration::from_secs(seconds));
            assert_eq!(parse_duration(text), expected, "{text}");
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "m", "5 m", "-1s", "1.5s", "5w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn common_size_formats_are_accepted() {
        for (text, bytes) in [("7", 7), ("7B", 7), ("64MiB", 64 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "64M", "-1", "1.5GiB", "64 MiB", "64mib"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_size("99999999999TiB"), Ok(u64::MAX));
    }

    #[test]
    fn errors_name_expected_form() {
        let expected = |error: Result<(), String>| error.unwrap_err();
        for (error, form) in [
            (parse_duration("soon").map(drop), "90s"),
            (parse_duration_or_off("on").map(drop), "or off"),
            (parse_size("much").map(drop), "64MiB"),
            (parse_lease("1ms").map(drop), "1s or more"),
            (parse_network("here").map(drop), "10.0.0.0/8"),
            (parse_listen("12090").map(drop), "0.0.0.0:12090"),
            (number(1..=200)("0").map(|_: u32| ()), "from 1 to 200"),
            (number(1..)("0").map(|_: u16| ()), "1 or more"),
            (number(1..)("70000").map(|_: u16| ()), "1 or more"),
            (number(..)("x").map(|_: i32| ()), "a whole number"),
        ] {
            let error = expected(error);
            assert!(error.contains(form), "{error}");
        }
        assert_eq!(number(1..=200)("200"), Ok(200));
    }

    proptest! {
        #[test]
        fn duration_needs_number_and_unit(number: u64, unit in 0usize..6, text in "[0-9smhd .+-]{0,6}|[0-9]{18,22}[sd]?") {
            let (unit, millis) = [("ms", 1), ("", 1000), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)][unit];
            let expected = u64::try_from(u128::from(number) * millis).unwrap_or(u64::MAX);
            prop_assert_eq!(parse_duration(&format!("{number}{unit}")), Ok(Duration::from_millis(expected)));
            if parse_duration(&text).is_ok() {
                let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
                prop_assert!(["ms", "", "s", "m", "h", "d"].contains(&unit) && unit.len() < text.len());
            }
        }
    }
}
