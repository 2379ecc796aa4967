#!/usr/bin/env bash
# Runs the sandbox tests as a plain user, whose podman is rootless. Does nothing for a plain user, whose tests are
# rootless anyway. Takes the binary under test. Creates the user `cynode-test` if it is missing (remove it with
# userdel --remove cynode-test).
set -euo pipefail

binary=$1
user=cynode-test
rooms=(escapes:: host_settings:: hostile_images:: image_gc:: init_alone:: job_ends:: job_limits:: kernel:: node_guards:: odd_images:: open_sandboxes:: podman_moods:: races:: run_files:: sandbox:: sandbox_inference:: shims:: trees:: warm:: worker_api::)

if [ "$(id -u)" -ne 0 ]; then
  echo "rootless: nothing to do, tests run as $(id -un) already"
  exit 0
fi
id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/sh "$user"
grep -q "^$user:" /etc/subuid || usermod --add-subuids 1000000-1065535 --add-subgids 1000000-1065535 "$user"

tests=$("${CARGO:-cargo}" test --locked --no-run --test it --message-format=json 2>/dev/null \
  | sed -n 's/.*"executable":"\([^"]*\/it-[^"]*\)".*/\1/p')
[ -x "$tests" ] || { echo "rootless: tests could not be built; run make it" >&2; exit 1; }

# A directory that this user can read, with a part of its own.
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
chmod 0755 "$place"
install -m 0755 "$tests" "$place/it"
install -m 0755 "$binary" "$place/cynode"
install -m 0755 "$(dirname "$binary")/examples/attack" "$place/attack"
install -d -o "$user" -m 0700 "$place/run" "$place/tmp"
home=$(getent passwd "$user" | cut -d: -f6)

# Without control groups, only the limit of the user bounds the processes of a container.
echo "rootless: left out is fork_bomb_ends_at_timeout_without_harm, which can wear out all that this user may run"
echo "rootless: left out are the two of open_sandboxes with a PID namespace of the node's, which only root can make"

cd "$home"
setpriv --reuid "$user" --regid "$user" --init-groups --reset-env \
  env HOME="$home" XDG_RUNTIME_DIR="$place/run" TMPDIR="$place/tmp" PATH="$PATH" \
  CYNODE_TEST_BINARY="$place/cynode" CYNODE_TEST_EXAMPLES="$place" "$place/it" "${rooms[@]}" --skip fork_bomb_ends_at_timeout_without_harm
