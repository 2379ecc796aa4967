//! A strict reader of the Prometheus text format 0.0.4: what it lets pass, every scraper reads.

use super::Api;
use std::collections::{BTreeMap, BTreeSet};

/// Content of one `/metrics`.
#[derive(Debug)]
pub(crate) struct Exposition {
    /// Types, by the name of the metric.
    pub(crate) types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

/// Name, labels and value of a sample.
type Sample<'a> = (&'a str, BTreeMap<String, String>, f64);

impl Exposition {
    /// Asks for it without a login.
    pub(crate) fn of(api: &Api) -> Self {
        let reply = api.anonymous().get("/metrics");
        reply.expect(200);
        let content_type = reply.header("content-type");
        assert_eq!(content_type, Some("text/plain; version=0.0.4"));
        Self::parse(std::str::from_utf8(&reply.body).unwrap())
    }

    /// The value of a series, such as `x_total{status="created"}`, labels in the order of their names.
    #[track_caller]
    pub(crate) fn value(&self, series: &str) -> f64 {
        let value = self.samples.get(series);
        *value.unwrap_or_else(|| panic!("no {series} in {:#?}", self.samples))
    }

    /// All series.
    pub(crate) fn series(&self) -> BTreeSet<&str> {
        self.samples.keys().map(String::as_str).collect()
    }

    /// The sum of a series over all values of its labels, where they hold `part`.
    pub(crate) fn sum(&self, name: &str, part: &str) -> f64 {
        let of = |series: &str| series.split('{').next() == Some(name) && series.contains(part);
        let values = self.samples.iter().filter(|(series, _)| of(series));
        values.map(|(_, value)| value).sum()
    }

    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has its end");
        let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) = split(line.strip_prefix("# HELP ").expect(line));
            assert!(is_name(name) && help.ends_with('.'), "{line}");
            let line = lines.next().unwrap();
            let (typed, kind) = split(line.strip_prefix("# TYPE ").expect(line));
            assert_eq!(typed, name, "HELP and TYPE go together");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let before = types.insert(name.to_owned(), kind.to_owned());
            assert_eq!(before, None, "{name} is told once");
            let mut family = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (of, labels, value) = sample(line);
                let before = samples.insert(series(of, &labels), value);
                assert_eq!(before, None, "{line}: a series is told once");
                family.push((of, labels, value));
            }
            assert!(!family.is_empty(), "{name} has no sample");
            check(name, kind, family);
        }
        Self { types, samples }
    }
}

/// The first word of a line, and the rest.
fn split(line: &str) -> (&str, &str) {
    line.split_once(' ').expect(line)
}

fn is_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    name.starts_with("cynode_") && name.bytes().all(known)
}

/// A series as it is asked for.
fn series(name: &str, labels: &BTreeMap<String, String>) -> String {
    let pairs = labels
        .iter()
        .map(|(label, text)| format!("{label}=\"{text}\""));
    let pairs: Vec<String> = pairs.collect();
    if pairs.is_empty() {
        return name.to_owned();
    }
    format!("{name}{{{}}}", pairs.join(","))
}

/// `name{label="value",…} number`; no label value of ours has to be escaped.
fn sample(line: &str) -> Sample<'_> {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value = value.parse::<f64>().expect(line);
    assert!(value.is_finite() && value >= 0.0, "{line}");
    let Some((name, rest)) = series.split_once('{') else {
        return (series, BTreeMap::new(), value);
    };
    let inner = rest.strip_suffix('}').expect(line);
    let mut labels = BTreeMap::new();
    for pair in inner.split(',') {
        let (label, quoted) = pair.split_once('=').expect(line);
        let text = quoted
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        let text = text.expect(line);
        assert!(!text.is_empty() && !text.contains(['"', '\\']), "{line}");
        assert!(
            labels.insert(label.to_owned(), text.to_owned()).is_none(),
            "{line}"
        );
    }
    (name, labels, value)
}

/// The samples of one metric are what its type says.
fn check(name: &str, kind: &str, family: Vec<Sample<'_>>) {
    if kind != "histogram" {
        assert!(["counter", "gauge"].contains(&kind), "{name} is a {kind}");
        assert!(family.iter().all(|(of, ..)| *of == name), "{family:?}");
        return;
    }
    assert!(name.ends_with("_seconds"), "{name} has a base unit");
    let mut buckets: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
    let (mut sums, mut counts) = (BTreeMap::new(), BTreeMap::new());
    for (of, mut labels, value) in family {
        match of.strip_prefix(name) {
            Some("_bucket") => {
                let bound = labels.remove("le").unwrap();
                let bound = bound.parse().unwrap();
                buckets.entry(labels).or_default().push((bound, value));
            }
            Some("_sum") => assert_eq!(sums.insert(labels, value), None),
            Some("_count") => assert_eq!(counts.insert(labels, value), None),
            _ => panic!("{of} is no part of {name}"),
        }
    }
    assert!(sums.keys().eq(buckets.keys()) && counts.keys().eq(buckets.keys()));
    for (labels, buckets) in &buckets {
        let rises = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        assert!(
            buckets.windows(2).all(rises),
            "{name}{labels:?}: {buckets:?}"
        );
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, counts[labels])));
    }
}
