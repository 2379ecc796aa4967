#!/usr/bin/env bash
# Prints an image for sandboxes on this machine: alpine if it is present or can be pulled, otherwise a small local one
# with a static busybox. Messages go to stderr.
set -euo pipefail

alpine=docker.io/library/alpine:latest
local_image=localhost/cynode-demo:latest

if podman image exists "$alpine"; then
  echo "$alpine"
  exit 0
fi
echo "Fetching $alpine …" >&2
if timeout 60 podman pull --quiet "$alpine" >/dev/null 2>&1; then
  echo "$alpine"
  exit 0
fi

echo "No registry answers; using a small local image instead: $local_image" >&2
if ! podman image exists "$local_image"; then
  busybox=$(command -v busybox) || { echo "busybox is missing; run: make setup" >&2; exit 1; }
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  mkdir -p "$root"/{bin,etc,tmp}
  chmod 1777 "$root/tmp"
  cp "$busybox" "$root/bin/busybox"
  "$busybox" --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\n' > "$root/etc/passwd"
  tar -C "$root" -c . | podman import --quiet - "$local_image" >/dev/null
fi
echo "$local_image"
