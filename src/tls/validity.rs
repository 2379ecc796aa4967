//! Dates of certificates (RFC 5280, section 4.1.2.5), which webpki checks but does not tell.

use jiff::{Timestamp, civil::DateTime, tz::Offset};
use rustls::pki_types::CertificateDer;

/// Tag of the version, which may be absent.
const VERSION_TAG: u8 = 0xa0;
/// Tags of both forms of a date.
const UTC_TIME_TAG: u8 = 0x17;
const GENERALIZED_TIME_TAG: u8 = 0x18;
/// First year of the century to which a year of two digits belongs.
const PIVOT_YEAR: i16 = 50;

/// Time for which a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// Dates of a certificate; `None` where they can't be read.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate, _) = element(certificate.as_ref())?;
        let (_, mut rest, _) = element(certificate)?;
        if rest.first() == Some(&VERSION_TAG) {
            (_, _, rest) = element(rest)?;
        }
        // Serial number, algorithm and issuer.
        for _ in 0..3 {
            (_, _, rest) = element(rest)?;
        }
        let (_, dates, _) = element(rest)?;
        let (tag, not_before, rest) = element(dates)?;
        let not_before = date(tag, not_before)?;
        let (tag, not_after, _) = element(rest)?;
        Some(Self {
            not_before,
            not_after: date(tag, not_after)?,
        })
    }
}

/// First element of a DER text: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(*first), rest),
        // A certificate is shorter than what four bytes can say.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = bytes
                .iter()
                .fold(0, |length, byte| (length << 8) | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// Moment in a date such as `260131235959Z` or `20260131235959Z`.
fn date(tag: u8, content: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME_TAG, 12) => {
            let year: i16 = text[..2].parse().ok()?;
            let century = if year < PIVOT_YEAR { 2000 } else { 1900 };
            (century + year, &text[2..])
        }
        (GENERALIZED_TIME_TAG, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |start: usize| rest[start..start + 2].parse::<i8>().ok();
    let time = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0);
    Offset::UTC.to_timestamp(time.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(years: [i32; 2]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["box".to_owned()]).unwrap();
        params.not_before = date_time_ymd(years[0], 1, 31);
        params.not_after = date_time_ymd(years[1], 12, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap());
        certificate.unwrap().der().clone()
    }

    #[test]
    fn dates_of_both_forms_are_read() {
        for years in [[2026, 2027], [1975, 2049], [2050, 9000]] {
            let validity = Validity::of_certificate(&certificate(years)).unwrap();
            let [begin, end] = years;
            let shown = [validity.not_before, validity.not_after].map(|date| date.to_string());
            let expected = [
                format!("{begin}-01-31T00:00:00Z"),
                format!("{end}-12-01T00:00:00Z"),
            ];
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn cut_certificate_has_no_dates() {
        let whole = certificate([2026, 2027]);
        for length in 0..100 {
            let cut = CertificateDer::from(whole[..length].to_vec());
            assert_eq!(Validity::of_certificate(&cut), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Validity::of_certificate(&CertificateDer::from(bytes.clone()));
            for tag in [UTC_TIME_TAG, GENERALIZED_TIME_TAG] {
                let _ = date(tag, &bytes);
            }
        }

        #[test]
        fn no_digits_panic(digits in "[0-9]{0,15}Z?") {
            for tag in [UTC_TIME_TAG, GENERALIZED_TIME_TAG] {
                let _ = date(tag, digits.as_bytes());
            }
        }
    }
}
