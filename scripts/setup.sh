#!/usr/bin/env bash
# Installs missing packages for building and testing: a C compiler (for SQLite), podman with a runtime (rootless,
# too), a static busybox (for the test image), nginx (for tests behind a proxy; its service stays disabled), and, as
# root, tools for namespaces and file systems. With --fuzz or --clients also Python and curl (for the API fuzzer and
# for clients of model servers), with --bench socat. Prints nothing if all are there; prints the missing ones where it
# can not install them. Rust itself is only checked.
set -euo pipefail

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

command -v cargo >/dev/null || fail "Rust is missing; install 1.91 or newer from https://rustup.rs"

missing=()
command -v cc      >/dev/null || missing+=(gcc libc6-dev)
command -v podman  >/dev/null || missing+=(podman)
command -v runc    >/dev/null || command -v crun >/dev/null || missing+=(runc)
command -v busybox >/dev/null || missing+=(busybox-static)
[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || missing+=(nginx-light)
# As root, tests also run podman as a plain user, and nodes in network namespaces.
[ "$(id -u)" -ne 0 ] || command -v newuidmap >/dev/null || missing+=(uidmap)
# They also remove directory trees on other file systems.
[ "$(id -u)" -ne 0 ] || command -v mkfs.xfs   >/dev/null || missing+=(xfsprogs)
[ "$(id -u)" -ne 0 ] || command -v mkfs.btrfs >/dev/null || missing+=(btrfs-progs)
[ "$(id -u)" -ne 0 ] || command -v chattr     >/dev/null || missing+=(e2fsprogs)
[ "$(id -u)" -ne 0 ] || command -v ip        >/dev/null || missing+=(iproute2)
[ "$(id -u)" -ne 0 ] || command -v iptables   >/dev/null || missing+=(iptables)
# A bench compares files with a plain copy.
if [ "${1:-}" = --bench ]; then
  command -v socat >/dev/null || missing+=(socat)
fi
if [ "${1:-}" = --fuzz ] || [ "${1:-}" = --clients ]; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  command -v curl >/dev/null || missing+=(curl)
fi
[ "${#missing[@]}" -eq 0 ] && exit 0

command -v apt-get >/dev/null \
  || fail "missing: ${missing[*]}; install them with this system's package manager"
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || fail "missing: ${missing[*]}; install them as root: apt-get install ${missing[*]}"
  sudo=(sudo)
fi
echo "setup: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Debian starts a service when it is installed, unless this file forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '"${sudo[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" install -m 0755 /dev/stdin "$policy"
fi
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
  || fail "apt-get could not install ${missing[*]}; see the lines above"
case " ${missing[*]} " in
  *" nginx-light "*) ! command -v systemctl >/dev/null || "${sudo[@]}" systemctl --quiet disable nginx || true ;;
esac
