#!/usr/bin/env bash
# Builds the release into dist/: the static binary, its SHA-256, and an SBOM (CycloneDX) of what is linked into it.
# Builds are reproducible: the same commit and tools give the same files, wherever they are built.
# Usage: scripts/release.sh
set -euo pipefail
cd "$(dirname "$0")/.."

sbom_tool=0.5.9
mkdir -p "${CARGO_TARGET_DIR:-target}" dist
here=$(pwd -P)
built=$(cd "${CARGO_TARGET_DIR:-target}" && pwd -P)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
target=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p;T;q' Cargo.toml)
name=cynode-$version-$target
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}

fail() { printf 'release: %s\n' "$*" >&2; exit 1; }

build() {
  # For this target, so that the flags of .cargo/config.toml still apply. The last match wins.
  local flags="'--remap-path-prefix=$here=cynode', '--remap-path-prefix=$built=target'"
  flags+=", '--remap-path-prefix=$cargo_home=cargo'"
  cargo build --profile dist --locked --target-dir "$built" --config "target.$target.rustflags=[$flags]"
  install -m 0755 "$built/$target/dist/cynode" "dist/$name"
}

# Fails unless an ELF file needs no dynamic linker: it has no program header PT_INTERP (3).
# Uses od: readelf comes with a toolchain only, and file is often missing.
check_static() {
  local word='od -An -v -j' table size count at
  [ "$($word 0 -N 6 -tx1 "$1" | tr -d ' ')" = 7f454c460201 ] || fail "$1 is not a little-endian 64-bit ELF file"
  table=$($word 32 -N 8 -tu8 "$1") size=$($word 54 -N 2 -tu2 "$1") count=$($word 56 -N 2 -tu2 "$1")
  for ((at = table; at < table + size * count; at += size)); do
    [ "$($word "$at" -N 4 -tu4 "$1")" -ne 3 ] || fail "$1 needs a dynamic linker"
  done
}

check_binary() {
  check_static "$1"
  [ "$(env -i "$1" version)" = "cynode $version" ] || fail "$1 does not run, or is not version $version"
  for path in "$here" "$built" "$cargo_home"; do
    ! grep -aqF "$path/" "$1" || fail "$1 contains a path of this machine: $path"
  done
}

# Linked parts that are not crates, one `name version` a line.
linked_beside_crates() {
  local sqlite
  echo "rust-std $(rustc -V | cut -d ' ' -f 2)"
  case $target in *-gnu) getconf GNU_LIBC_VERSION ;; esac
  sqlite=$(cargo metadata --locked --format-version 1 --filter-platform "$target" \
    | jq -r '.packages[] | select(.name == "libsqlite3-sys").manifest_path')
  sed -n 's/^#define SQLITE_VERSION  *"\(.*\)"/sqlite \1/p' "${sqlite%/*}/sqlite3/sqlite3.h" | grep .
}

# The tool lists more than what is linked: crates that only features of tests need. `cargo tree` filters them.
write_sbom() {
  local crates others
  crates=$(cargo tree --locked --target "$target" -e normal --prefix none --format '{p}')
  others=$(linked_beside_crates)
  trap 'rm -f cynode_bin.cdx.json' EXIT
  PATH=$built/tools/bin:$PATH cargo cyclonedx --quiet --format json --spec-version 1.5 \
    --describe binaries --no-build-deps --target "$target"
  jq --arg crates "$crates" --arg others "$others" --arg self "cynode@$version" \
    --arg sum "$(cut -d ' ' -f 1 "dist/$name.sha256")" '
      ($crates | split("\n") | map(split(" ") | .[0] + "@" + .[1][1:])) as $linked
      | ($others | split("\n") | map(split(" ") | {type: "library", "bom-ref": join("@"), name: .[0],
          version: .[1], scope: "required"})) as $others
      | def is_linked: sub(".*#"; "") | IN($linked[]);
      .metadata.component["bom-ref"] as $here
      | .metadata.component |= (.["bom-ref"] = $self | .purl |= sub("\\?.*"; "")
          | .hashes = [{alg: "SHA-256", content: $sum}])
      | .components |= map(select("\(.name)@\(.version)" | is_linked)) + $others
      | .dependencies |= map(
          if .ref == $here then .ref = $self | .dependsOn += ($others | map(.["bom-ref"])) else . end
          | select(.ref | is_linked)
          | if .dependsOn then .dependsOn |= map(select(IN($others[]["bom-ref"]) or is_linked)) else . end)
    ' cynode_bin.cdx.json >"dist/$name.cdx.json"
}

command -v jq >/dev/null || fail "jq is missing; install it with this system's package manager"
installed=$("$built/tools/bin/cargo-cyclonedx" cyclonedx --version 2>/dev/null || true)
if [ "${installed##* }" != "$sbom_tool" ]; then
  echo "release: installing cargo-cyclonedx $sbom_tool into $built/tools" >&2
  cargo install --quiet --locked --force --root "$built/tools" cargo-cyclonedx --version "$sbom_tool"
fi
rm -f "dist/$name" "dist/$name".*
build
check_binary "dist/$name"
(cd dist && sha256sum "$name" >"$name.sha256" && sha256sum --quiet -c "$name.sha256")
write_sbom
ls -l "dist/$name"*
