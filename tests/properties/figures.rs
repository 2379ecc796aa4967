//! Comparison of the benches' figures with the committed ones.

#[path = "../../benches/figures.rs"]
#[allow(dead_code, reason = "the benches use the rest")]
mod bench;

use bench::{Figure, committed, regressions, replace, table};
use proptest::prelude::*;

const EMPTY: &str =
    "# P\n\nWhy.\n\n<!-- figures: a -->\n<!-- end -->\n\n<!-- figures: b -->\n<!-- end -->\n";

/// Names of the figures that are worse than before.
fn worse(before: &[Figure], now: &[Figure]) -> Vec<String> {
    let document = replace(EMPTY, "a", &table(before)).unwrap();
    let found = regressions(&committed(&document, "a"), now);
    found
        .into_iter()
        .map(|regression| regression.name)
        .collect()
}

#[test]
fn only_the_worse_direction_is_a_regression() {
    let lower = |value| [Figure::lower("latency", "×", value)];
    assert_eq!(worse(&lower(1.0), &lower(1.6)), ["latency"]);
    assert!(worse(&lower(1.0), &lower(1.4)).is_empty());
    assert!(worse(&lower(1.0), &lower(0.1)).is_empty());
    let higher = |value| [Figure::higher("rate", "×", value)];
    assert_eq!(worse(&higher(1.0), &higher(0.6)), ["rate"]);
    assert!(worse(&higher(1.0), &higher(0.7)).is_empty());
    assert!(worse(&higher(1.0), &higher(10.0)).is_empty());
}

#[test]
fn plain_and_new_figures_never_regress() {
    let plain = |value| [Figure::plain("time", "ms", value)];
    assert!(worse(&plain(1.0), &plain(1000.0)).is_empty());
    assert!(worse(&[], &[Figure::lower("new", "×", 9.0)]).is_empty());
}

#[test]
fn wider_margin_forgives_more() {
    let tail = |value| [Figure::lower("tail", "×", value).within(3.0)];
    assert!(worse(&tail(1.0), &tail(2.9)).is_empty());
    assert_eq!(worse(&tail(1.0), &tail(3.1)), ["tail"]);
}

#[test]
fn zero_stays_equal_to_zero() {
    let none = [Figure::lower("bytes", "MB", 0.0)];
    assert!(worse(&none, &none).is_empty());
    assert_eq!(
        worse(&none, &[Figure::lower("bytes", "MB", 1.0)]),
        ["bytes"]
    );
}

#[test]
fn missed_goals_are_marked() {
    let figures = [
        Figure::lower("low", "×", 1.04).at_most(1.05),
        Figure::higher("high", "×", 0.9).at_least(1.0),
    ];
    let table = table(&figures);
    assert!(
        table.contains("| low | 1.04 | × | ≤ 1.05 | yes |"),
        "{table}"
    );
    assert!(
        table.contains("| high | 0.900 | × | ≥ 1 | **no** |"),
        "{table}"
    );
}

#[test]
fn section_is_replaced_alone() {
    let once = replace(EMPTY, "a", "| old | 1 |").unwrap();
    let again = replace(&once, "a", "| new | 2 |").unwrap();
    let expected = EMPTY.replace(
        "<!-- figures: a -->\n",
        "<!-- figures: a -->\n\n| new | 2 |\n\n",
    );
    assert_eq!(again, expected);
    assert!(
        replace(EMPTY, "c", "")
            .unwrap_err()
            .contains("<!-- figures: c -->")
    );
}

proptest! {
    #[test]
    fn table_keeps_its_values(value in 0.01f64..1e9, lower: bool) {
        let figure = if lower { Figure::lower("x, p50", "×", value) } else { Figure::higher("x, p50", "×", value) };
        let document = replace(EMPTY, "b", &table(&[figure])).unwrap();
        let read = committed(&document, "b");
        prop_assert_eq!(read.len(), 1);
        prop_assert_eq!(&read[0].0, "x, p50");
        prop_assert!((read[0].1 / value - 1.0).abs() <= 0.06, "{} {}", read[0].1, value);
    }

    #[test]
    fn equal_runs_never_regress(value in 0.001f64..1e9, lower: bool) {
        let figure = if lower { Figure::lower("x", "×", value) } else { Figure::higher("x", "×", value) };
        let document = replace(EMPTY, "a", &table(std::slice::from_ref(&figure))).unwrap();
        // Rounding of small values is less than the margin.
        prop_assume!(value >= 0.01);
        prop_assert!(regressions(&committed(&document, "a"), &[figure]).is_empty());
    }
}
