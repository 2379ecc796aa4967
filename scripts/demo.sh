#!/usr/bin/env bash
# Starts `cynode dev` in a temporary directory, runs a task, and shows the next commands.
# Usage: scripts/demo.sh BINARY
set -euo pipefail

binary=$1
home=$(mktemp -d "${TMPDIR:-/tmp}/cynode-demo.XXXXXX")
export XDG_CONFIG_HOME=$home/config
pid=

finish() {
  status=$?
  trap - EXIT
  if [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null; then wait "$pid" || true; fi
  if [ "$status" -ne 0 ]; then
    echo "The demo failed. Log (also in $home/log):" >&2
    cat "$home/log" >&2 2>/dev/null || true
  else
    rm -rf "$home"
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

image=$("$(dirname "$0")/demo-image.sh")

echo
echo "── 1. cynode dev: orchestrator, node and worker in one process"
: >"$home/welcome"
"$binary" dev --data-dir "$home/data" --default-image "$image" --shutdown-grace 0s \
  --gateway-listen 127.0.0.1:0 --control-listen 127.0.0.1:0 --worker-listen 127.0.0.1:0 \
  >"$home/welcome" 2>"$home/log" &
pid=$!
# `cynode dev` prints this when its node takes jobs.
until grep -q 'In another terminal' "$home/welcome"; do
  kill -0 "$pid" 2>/dev/null || exit 1
  sleep 0.1
done
"$binary" status

echo
echo "── 2. a task, in a fresh sandbox without a network"
script='echo "hello from $(hostname), in $PWD"; echo "network: $(ls /sys/class/net | xargs)"; id -un'
printf "$ cynode run -- sh -c '%s'\n" "$script"
"$binary" run --name demo -- sh -c "$script"

echo
echo "── 3. its record, which survives restarts"
"$binary" task list

cat <<EOT

It works. Next, in one terminal:

  $binary dev --default-image $image

and in another:

  $binary run -- echo hello
  $binary task list

README.md shows how to add a second machine.
EOT
