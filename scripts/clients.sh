#!/usr/bin/env bash
# Installs the official Python clients of OpenAI, Anthropic and Ollama into a virtual environment below target/, with
# --real also llama.cpp's server and a writer of models. Prints the path of its Python.
set -euo pipefail

fail() { printf 'clients: %s\n' "$*" >&2; exit 1; }

cd "$(dirname "$0")/.."
venv=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")/clients/venv
lists=(tests/clients/requirements.txt)
if [ "${1:-}" = --real ]; then
  venv=$venv-real
  lists+=(tests/clients/requirements-real.txt)
fi
wanted=$(cat "${lists[@]}")
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
  scripts/setup.sh --clients
  python3 -m venv --clear "$venv" || fail "python3 -m venv failed; scripts/setup.sh --clients installs what it needs"
  # Wheels only: a build of llama.cpp from source takes many minutes.
  "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "${lists[@]/#/--requirement=}" >&2 \
    || fail "pip could not install $(tr '\n' ' ' <<<"$wanted"); see the lines above"
  printf '%s' "$wanted" >"$venv/installed"
fi
printf '%s\n' "$venv/bin/python"
