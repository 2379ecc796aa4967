#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/, each for a bounded number of inputs and time. Works on stable Rust, without
# sanitizers, which safe code needs least.
# Usage: scripts/fuzz.sh              all targets
#        scripts/fuzz.sh TARGET       one of them
#        scripts/fuzz.sh TARGET FILE  one input, to reproduce a crash
# FUZZ_RUNS, FUZZ_SECONDS and FUZZ_SEED set inputs and seconds per target, and the random seed.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.13.2
runs=${FUZZ_RUNS:-20000}
seconds=${FUZZ_SECONDS:-20}
seed=${FUZZ_SEED:-$((RANDOM * 32768 + RANDOM + 1))}
built=${CARGO_TARGET_DIR:-target}
tool=$built/tools/bin/cargo-fuzz

fail() { printf 'fuzz: %s\n' "$*" >&2; exit 1; }

command -v c++ >/dev/null || fail "a C++ compiler is missing, for libFuzzer; install g++"
if [ "$("$tool" --version 2>/dev/null)" != "cargo-fuzz $version" ]; then
  echo "fuzz: installing cargo-fuzz $version into $built/tools" >&2
  cargo install --quiet --locked --force --root "$built/tools" cargo-fuzz --version "$version"
fi
# The same versions as in the release, and those of libFuzzer beside them.
[ fuzz/Cargo.lock -nt Cargo.lock ] || cp Cargo.lock fuzz/Cargo.lock

fuzz() { "$tool" "$1" --sanitizer none --target-dir "$built/fuzz" "${@:2}"; }

if [ $# -eq 2 ]; then
  fuzz run "$1" "$2"
  exit
fi

fuzz build ${1:+"$1"} >&2
echo "fuzz: seed $seed, at most $runs inputs and $seconds s each; FUZZ_SEED=$seed repeats this run"
for target in ${1:-$("$tool" list)}; do
  corpus=fuzz/corpus/$target
  log=$built/fuzz/$target.log
  mkdir -p "$corpus"
  if ! fuzz run "$target" "$corpus" "fuzz/seeds/$target" -- \
    "-seed=$seed" "-runs=$runs" "-max_total_time=$seconds" -max_len=4096 -timeout=10 >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    fail "$target failed (seed $seed). Reproduce it with: scripts/fuzz.sh $target ${input:-FILE}"
  fi
  echo "fuzz: $target: $(sed -n 's/^Done \(.*\)/\1/p' "$log")"
done
