#!/usr/bin/env bash
# Runs a real `pip install` and `cargo fetch` in a sandbox that has no network but the proxy of its node. Their registries
# stand in on a private address of a network namespace. The image is made of this machine's Python, Cargo and rustc. Takes
# the binary under test. Needs root; leaves nothing behind.
set -euo pipefail

fail() { printf 'egress-tools: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "network namespaces need root: run it with sudo"
# The names of the registries are in /etc/hosts of a mount namespace of our own.
if [ -z "${EGRESS_TOOLS_INSIDE:-}" ]; then
  EGRESS_TOOLS_INSIDE=1 exec unshare --mount --propagation private "$0" "$@"
fi

binary=$(realpath "$1")
cd "$(dirname "$0")/.."
scripts/demo-image.sh >/dev/null
image=localhost/cynode-test-tools:$$
namespace=cynode-tools-$$
net=10.98.7
place=$(mktemp -d)
pids=()
mkdir "$place/home"

clean_up() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null && wait "$pid" || true; done
  ip netns delete "$namespace" 2>/dev/null || true
  podman rmi --force "$image" >/dev/null 2>&1 || true
  rm -rf "$place"
}
trap clean_up EXIT

# Copies a program or library with the libraries that it needs.
with_libraries() {
  local file
  { ldd "$1" | grep -o '/[^ ]*' || true; } | while read -r file; do
    mkdir -p "$root$(dirname "$file")"
    cp --dereference --update "$file" "$root$file"
  done
}

make_image() {
  local root=$place/root python rust container
  mkdir "$root"
  container=$(podman create localhost/cynode-demo:latest true)
  podman export "$container" | tar -x -C "$root"
  podman rm "$container" >/dev/null
  python=$(python3 -c 'import sys, sysconfig; print(sys._base_executable, sysconfig.get_path("stdlib"), sys.base_prefix)')
  read -r executable library prefix <<<"$python"
  mkdir -p "$root$(dirname "$executable")" "$root$library"
  cp --dereference "$executable" "$root$executable"
  with_libraries "$executable"
  tar -c -C "$library" --exclude=test --exclude=__pycache__ --exclude='site-packages/*' --exclude='dist-packages/*' . \
    | tar -x -C "$root$library"
  find "$library/lib-dynload" -name '*.so' ! -name '*tkinter*' | while read -r module; do with_libraries "$module"; done
  # The wheel of pip itself can be run.
  find "$library" /usr/share/python-wheels -name 'pip-*.whl' 2>/dev/null | head -1 | xargs -I{} cp {} "$root/pip.whl"
  [ -e "$root/pip.whl" ] || fail "this Python has no wheel of pip; install python3-venv"
  rust=$(rustc --print sysroot)
  mkdir -p "$root/rust/bin" "$root/rust/lib/rustlib"
  cp "$rust/bin/cargo" "$rust/bin/rustc" "$root/rust/bin/"
  cp "$rust"/lib/*.so* "$root/rust/lib/"
  with_libraries "$rust/bin/cargo"
  with_libraries "$rust/bin/rustc"
  printf 'export PYTHONHOME=%s PATH=%s:/rust/bin:/bin:/usr/bin\npython=%s\n' "$prefix" "$(dirname "$executable")" "$executable" \
    >"$root/tools.sh"
  tar -c -C "$root" . | podman import --quiet - "$image" >/dev/null
}

make_registries() {
  mkdir -p "$place/registry"
  python3 - "$place/registry" <<'PYTHON'
import hashlib, io, json, pathlib, sys, tarfile, zipfile

root = pathlib.Path(sys.argv[1])

def write(path, content):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()

wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w") as file:
    info = "tiny-1.0.dist-info"
    file.writestr("tiny/__init__.py", "word = 'from the wheel'\n")
    file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    file.writestr(f"{info}/RECORD", "")
name = "tiny-1.0-py3-none-any.whl"
digest = write(f"simple/tiny/{name}", wheel.getvalue())
write("simple/tiny/index.html", f'<!DOCTYPE html><a href="{name}#sha256={digest}">{name}</a>'.encode())

crate = io.BytesIO()
with tarfile.open(fileobj=crate, mode="w:gz") as file:
    for path, text in {"Cargo.toml": '[package]\nname = "tiny"\nversion = "1.0.0"\n', "src/lib.rs": ""}.items():
        entry = tarfile.TarInfo(f"tiny-1.0.0/{path}")
        entry.size = len(text)
        file.addfile(entry, io.BytesIO(text.encode()))
digest = write("crates/tiny/1.0.0/download", crate.getvalue())
write("index/config.json", json.dumps({"dl": "http://crates.example:8000/crates"}).encode())
line = {"name": "tiny", "vers": "1.0.0", "deps": [], "cksum": digest, "features": {}, "yanked": False}
write("index/ti/ny/tiny", json.dumps(line).encode() + b"\n")
PYTHON
  ip netns add "$namespace"
  ip link add "cyt$$" type veth peer name cyt netns "$namespace"
  ip address add "$net.1/24" dev "cyt$$"
  ip link set "cyt$$" up
  ip -n "$namespace" address add "$net.6/24" dev cyt
  ip -n "$namespace" link set cyt up
  (cat /etc/hosts; echo "$net.6 pypi.example crates.example") >"$place/hosts"
  mount --bind "$place/hosts" /etc/hosts
  ip netns exec "$namespace" python3 -m http.server 8000 --bind "$net.6" --directory "$place/registry" \
    >"$place/registry.log" 2>&1 &
  pids+=($!)
}

# Has a login of its own.
cynode() { HOME=$place/home "$binary" "$@"; }

until_true() {
  for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  cat "$place"/*.log >&2
  fail "in 30 s it did not come true: $*"
}

is_ready() { cynode nodes list | grep -w ready; }

start_cynode() {
  cynode dev --data-dir "$place/data" --gateway-listen 127.0.0.1:0 --control-listen 127.0.0.1:0 --worker-listen 127.0.0.1:0 \
    --egress-allow pypi.example:8000,crates.example:8000 --egress-allow-private "$net.0/24" >"$place/cynode.log" 2>&1 &
  pids+=($!)
  until_true is_ready
}

make_image
make_registries
start_cynode
cat >"$place/job.sh" <<'JOB'
set -e
. /tools.sh
ls /sys/class/net
PYTHONPATH=/pip.whl $python -m pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore --target packages \
  --index-url http://pypi.example:8000/simple --trusted-host pypi.example tiny
PYTHONPATH=packages $python -c 'import tiny; print(tiny.word)'
mkdir -p .cargo src && touch src/lib.rs
printf '[package]\nname = "x"\nversion = "0.1.0"\n[dependencies]\ntiny = { version = "1", registry = "r" }\n' >Cargo.toml
printf '[registries.r]\nindex = "sparse+http://crates.example:8000/index/"\n' >.cargo/config.toml
export CARGO_HOME=/workspace/cargo
cargo fetch --quiet
find cargo -name '*.crate' -exec basename {} \;
JOB
run() { cynode run --image "$image" "$@" -- sh -c "$(cat "$place/job.sh")"; }
expected=$'lo\nfrom the wheel\ntiny-1.0.0.crate'
got=$(run --allow pypi.example:8000 --allow crates.example:8000) || fail "the job failed; it printed: $got"
[ "$got" = "$expected" ] || fail "expected $expected, got $got"
! run --allow pypi.example:8000 >"$place/refused" 2>&1 || fail "cargo reached a registry that the job does not list"
grep -q 403 "$place/refused" || fail "no refusal: $(cat "$place/refused")"
echo "egress-tools: pip and cargo worked through the proxy, and only with hosts on the list"
