//! Measures what docs/performance.md states.
//!
//! `make bench` runs all benches, or those that it names (`make bench BENCH="latency memory"`), and writes their figures
//! into the document. `make bench-check` compares a run with the committed figures and writes nothing. Ways to do the
//! same thing are measured in turn, and figures are mostly ratios of one run, so that machines can be compared.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub
)]

mod creates;
mod egress;
mod figures;
mod files;
mod flood;
mod inference;
mod latency;
mod machine;
mod memory;
mod model_server;
mod sandboxes;
mod schedule;
mod startup;
mod storm;
mod support;
mod throughput;
mod tunnel;

use figures::{Figure, Regression};
use std::{env, fs, panic::catch_unwind, process::ExitCode, time::Instant};

const DOCUMENT: &str = "docs/performance.md";
/// Section of the document that describes the machine.
const MACHINE: &str = "machine";

type Bench = fn() -> Vec<Figure>;

/// All benches, each with the name of its section in the document.
const BENCHES: [(&str, Bench); 13] = [
    ("latency", latency::bench),
    ("throughput", throughput::bench),
    ("creates", creates::bench),
    ("schedule", schedule::bench),
    ("memory", memory::bench),
    ("startup", startup::bench),
    ("flood", flood::bench),
    ("files", files::bench),
    ("inference", inference::bench),
    ("sandboxes", sandboxes::bench),
    ("storm", storm::bench),
    ("tunnel", tunnel::bench),
    ("egress", egress::bench),
];

fn main() -> ExitCode {
    // The engine's probe uses the running binary, which is this bench, as a sandbox's init.
    cynode::helpers::run_if_requested();
    // Cargo adds `--bench`.
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let (flags, names): (Vec<_>, Vec<_>) =
        arguments.iter().partition(|word| word.starts_with("--"));
    let is_check = flags == ["--check"];
    let known = |name: &str| BENCHES.iter().any(|(bench, _)| *bench == name);
    let unknown = names.iter().find(|name| !known(name));
    if let Some(word) = unknown.or(flags.first().filter(|_| !is_check)) {
        let names = BENCHES.map(|(name, _)| name).join(", ");
        eprintln!("{word} is neither --check nor a bench; the benches are {names}");
        return ExitCode::from(2);
    }
    let is_chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| *chosen == name);
    let (mut failed, mut found) = (Vec::new(), Vec::new());
    for (name, bench) in BENCHES.into_iter().filter(|(name, _)| is_chosen(name)) {
        match run(name, bench, is_check) {
            Some(regressions) => {
                found.extend(regressions.into_iter().map(|regression| (name, regression)))
            }
            None => failed.push(name),
        }
    }
    if !is_check && failed.is_empty() {
        write(MACHINE, &machine::describe());
    }
    if !found.is_empty() {
        println!(
            "\nregressions against {DOCUMENT}:\n\n{}",
            figures::regression_table(&found)
        );
    }
    if !failed.is_empty() {
        eprintln!("failed: {}", failed.join(", "));
    }
    ExitCode::from(u8::from(!found.is_empty() || !failed.is_empty()))
}

/// Runs a bench and shows its figures; what is worse than before, or `None` where it failed. Others go on.
fn run(name: &str, bench: Bench, is_check: bool) -> Option<Vec<Regression>> {
    println!("\n{name}");
    let began = Instant::now();
    let measured = catch_unwind(bench).ok()?;
    if measured.is_empty() {
        // It has said why it can't be measured here; what the document has of it stays.
        return Some(Vec::new());
    }
    let table = figures::table(&measured);
    println!("{table}({:.0} s)", began.elapsed().as_secs_f64());
    if is_check {
        let document = fs::read_to_string(DOCUMENT).unwrap();
        let committed = figures::committed(&document, name);
        let missing = figures::not_measured(&committed, &measured);
        if committed.is_empty() || !missing.is_empty() {
            eprintln!(
                "{DOCUMENT} has no figures of {name}, or some that were not measured: {missing:?}; run make bench"
            );
            return None;
        }
        return Some(figures::regressions(&committed, &measured));
    }
    write(name, &table);
    Some(Vec::new())
}

/// Writes a section of the document.
fn write(section: &str, text: &str) {
    let document = fs::read_to_string(DOCUMENT).unwrap();
    let document = figures::replace(&document, section, text);
    fs::write(DOCUMENT, document.unwrap_or_else(|error| panic!("{error}"))).unwrap();
}
