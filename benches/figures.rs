//! Figures of the benches: their table in docs/performance.md, and the comparison of a run with it.
//!
//! The document is written by people; a bench owns only what stands between `<!-- figures: NAME -->` and
//! `<!-- end -->`. There each figure is a row of a table, from which `make bench-check` reads what was committed.

use std::fmt::{self, Write as _};

/// Factor by which a figure may be worse than the committed one.
const MARGIN: f64 = 1.5;
const END: &str = "<!-- end -->";

/// Direction in which a figure improves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Better {
    Lower,
    Higher,
}

/// Goal of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

/// One result of a bench.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// Direction, of a figure that is compared: a ratio, or a size. Times and rates depend on the machine.
    better: Option<Better>,
    margin: f64,
    goal: Option<Goal>,
}

impl Figure {
    /// A figure that is shown, and not compared.
    pub fn plain(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            better: None,
            margin: MARGIN,
            goal: None,
        }
    }

    /// A figure that improves as it falls.
    pub fn lower(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            better: Some(Better::Lower),
            ..Self::plain(name, unit, value)
        }
    }

    /// A figure that improves as it rises.
    pub fn higher(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            better: Some(Better::Higher),
            ..Self::plain(name, unit, value)
        }
    }

    /// The same with an upper goal.
    pub fn at_most(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtMost(goal));
        self
    }

    /// The same with a lower goal.
    pub fn at_least(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtLeast(goal));
        self
    }

    /// The same with a wider margin, for a figure that varies between runs, such as a tail.
    pub fn within(mut self, margin: f64) -> Self {
        self.margin = margin;
        self
    }

    /// Factor by which this figure is worse than the committed value; `None` for one that is not compared.
    fn worse_by(&self, committed: f64) -> Option<f64> {
        let factor = match self.better? {
            Better::Lower => self.value / committed,
            Better::Higher => committed / self.value,
        };
        // Two zeroes are equal.
        Some(if factor.is_nan() { 1.0 } else { factor })
    }
}

/// Table of figures as it stands in the document.
pub fn table(figures: &[Figure]) -> String {
    let mut text = "| figure | value | unit | goal | met |\n|---|---:|---|---|---|\n".to_owned();
    for figure in figures {
        let goal = figure
            .goal
            .map_or_else(String::new, |goal| goal.to_string());
        let met = match figure.goal.map(|goal| goal.is_met(figure.value)) {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let Figure { name, unit, .. } = figure;
        let value = number(figure.value);
        // A String takes every write.
        let _ = writeln!(text, "| {name} | {value} | {unit} | {goal} | {met} |");
    }
    text
}

/// Three digits that count, and no exponent.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

fn begin(section: &str) -> String {
    format!("<!-- figures: {section} -->")
}

/// Start and end of what stands between the markers of a section.
fn span(document: &str, section: &str) -> Option<(usize, usize)> {
    let begin = begin(section);
    let start = document.find(&begin)? + begin.len();
    Some((start, start + document[start..].find(END)?))
}

/// The document with a new text in a section; fails where the markers are missing.
pub fn replace(document: &str, section: &str, text: &str) -> Result<String, String> {
    let (start, end) = span(document, section).ok_or_else(|| {
        let begin = begin(section);
        format!("docs/performance.md has no section for {section}; add the lines {begin} and {END}")
    })?;
    let (before, after) = (&document[..start], &document[end..]);
    Ok(format!("{before}\n\n{}\n\n{after}", text.trim_end()))
}

/// Names and values of the figures in a section of the document.
pub fn committed(document: &str, section: &str) -> Vec<(String, f64)> {
    let Some((start, end)) = span(document, section) else {
        return Vec::new();
    };
    let rows = document[start..end].lines().filter_map(|line| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let name = cells.next()?.to_owned();
        Some((name, cells.next()?.parse().ok()?))
    });
    rows.collect()
}

/// Names of committed figures that were not measured.
pub fn not_measured<'a>(committed: &'a [(String, f64)], figures: &[Figure]) -> Vec<&'a str> {
    let is_measured = |name: &str| figures.iter().any(|figure| figure.name == name);
    let names = committed.iter().map(|(name, _)| name.as_str());
    names.filter(|name| !is_measured(name)).collect()
}

/// A figure that is worse than the committed one by more than its margin.
#[derive(Debug, PartialEq)]
pub struct Regression {
    pub name: String,
    pub committed: f64,
    pub measured: f64,
    pub worse_by: f64,
    pub margin: f64,
}

/// Compares figures with the committed ones. A figure that was not committed yet is no regression.
pub fn regressions(committed: &[(String, f64)], figures: &[Figure]) -> Vec<Regression> {
    let compared = figures.iter().filter_map(|figure| {
        let (_, before) = committed.iter().find(|(name, _)| *name == figure.name)?;
        let worse_by = figure.worse_by(*before)?;
        (worse_by > figure.margin).then(|| Regression {
            name: figure.name.clone(),
            committed: *before,
            measured: figure.value,
            worse_by,
            margin: figure.margin,
        })
    });
    compared.collect()
}

/// Table of regressions for a terminal.
pub fn regression_table(found: &[(&str, Regression)]) -> String {
    let mut text = format!(
        "{:<12} {:<44} {:>10} {:>10} {:>9} {:>7}\n",
        "bench", "figure", "committed", "measured", "worse by", "margin"
    );
    for (bench, regression) in found {
        let Regression {
            name,
            worse_by,
            margin,
            ..
        } = regression;
        let (before, now) = (number(regression.committed), number(regression.measured));
        // A String takes every write.
        let _ = writeln!(
            text,
            "{bench:<12} {name:<44} {before:>10} {now:>10} {worse_by:>8.2}x {margin:>6.2}x"
        );
    }
    text
}
