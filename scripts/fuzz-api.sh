#!/usr/bin/env bash
# Fuzzes the User API: starts an orchestrator, sends it valid and invalid requests generated from its /openapi.json, and
# checks each answer against that document.
#
# Usage: scripts/fuzz-api.sh BINARY
# SEED and EXAMPLES set the random seed and the number of examples of each kind.
set -euo pipefail

fail() { printf 'fuzz-api: %s\n' "$*" >&2; exit 1; }

binary=$(realpath "${1:?the binary to fuzz}")
seed=${SEED:-1}
examples=${EXAMPLES:-60}
fuzzer=schemathesis==4.32.5
target=$(realpath "${CARGO_TARGET_DIR:-target}")
venv=$target/fuzz-api/venv

if [ "$(cat "$venv/installed" 2>/dev/null)" != "$fuzzer" ]; then
  python3 -m venv --clear "$venv" || fail "python3 -m venv failed; scripts/setup.sh --fuzz installs what it needs"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$fuzzer" \
    || fail "pip could not install $fuzzer; see the lines above"
  printf '%s' "$fuzzer" >"$venv/installed"
fi

work=$(mktemp -d)
orchestrator=
end() {
  [ -z "$orchestrator" ] || { kill "$orchestrator" && wait "$orchestrator"; } 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT

# No secret in an argument list, not even a temporary one.
(umask 077; head -c 24 /dev/urandom | base64 >"$work/password"; head -c 24 /dev/urandom | base64 >"$work/psk")
env -i PATH="$PATH" "$binary" serve-orchestrator --data-dir "$work/data" --require-inference false --user-rate 0 \
  --gateway-listen 127.0.0.1:0 --control-listen 127.0.0.1:0 --tls off \
  --admin-password-file "$work/password" --psk-file "$work/psk" >"$work/log" 2>&1 &
orchestrator=$!

# Calls the orchestrator with stdin as the body. Prints the answer.
call() { # METHOD URL [TOKEN]
  curl --silent --show-error --fail-with-body --request "$1" --header "content-type: application/json" \
    --config <(printf 'header = "authorization: Bearer %s"\n' "${3:-}") --data @- "$2" \
    || { tail -n 20 "$work/log" >&2; fail "$1 $2 was refused"; }
}
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
log_in() {
  printf '{"handle": "admin", "password": "%s"}' "$(cat "$work/password")" \
    | call POST "$gateway/v1/auth/login" | field access_token
}

for _ in $(seq 300); do
  grep -q gateway "$work/data/addresses.json" 2>/dev/null && break
  kill -0 "$orchestrator" 2>/dev/null || { cat "$work/log" >&2; fail "the orchestrator did not start"; }
  sleep 0.1
done
gateway=http://$(field gateway <"$work/data/addresses.json")
control=http://$(field control <"$work/data/addresses.json")

TOKEN=$(log_in)
LOGOUT_TOKEN=$(log_in)
# A task whose events end, and a node, for calls to find.
TASK=$(printf '{"script": "true"}' | call POST "$gateway/v1/tasks" "$TOKEN" | field id)
call POST "$gateway/v1/tasks/$TASK/cancel" "$TOKEN" </dev/null >/dev/null
# A user to disable, other than the one who is logged in.
VICTIM=$(printf '{"handle": "victim", "password": "%s"}' "$(cat "$work/password")" \
  | call POST "$gateway/v1/users" "$TOKEN" | field id)
call POST "$control/v1/nodes/register" >/dev/null <<JSON
{"psk": "$(cat "$work/psk")", "capability": {"version": 1, "reported_at": "2026-01-01T00:00:00Z",
 "node": {"node_slug": "box", "labels": ["here"]}, "platform": {"os": "linux", "arch": "amd64"},
 "compute": {"cpu_cores": 2, "ram_mb": 1024}, "inference": {"supported": false},
 "gpu": {"present": true, "devices": [{"vendor": "amd", "features": {"gfx": "gfx1100"}}]}}}
JSON

cat >"$work/schemathesis.toml" <<'TOML'
request-timeout = 20

[auth.openapi.bearer]
bearer = "${TOKEN}"

[checks]
# Needs two users; tests/it has it.
object_level_authorization.enabled = false
# Failed logins are slowed by 429.
positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 429]

# Ends a session of its own, so that the others go on.
[[operations]]
include-operation-id = "log_out"
headers = { Authorization = "Bearer ${LOGOUT_TOKEN}" }

# No node runs tasks here: the events of another one would never end.
[[operations]]
include-operation-id = "get_task_logs"
parameters = { "path.id" = "${TASK}" }

[[operations]]
include-operation-id = ["disable_user", "enable_user", "revoke_sessions", "reset_password"]
parameters = { "path.id" = "${VICTIM}" }

[[operations]]
include-operation-id = ["get_node", "drain_node", "resume_node"]
parameters = { "path.slug" = "box" }

# No node is ready, so 503 is right.
[[operations]]
include-operation-id = "readyz"
checks.not_a_server_error.enabled = false
checks.positive_data_acceptance.enabled = false
TOML

export TOKEN LOGOUT_TOKEN TASK VICTIM
printf 'fuzz-api: SEED=%s EXAMPLES=%s\n' "$seed" "$examples"
(cd "$work" && "$venv/bin/schemathesis" --config-file schemathesis.toml run "$gateway/openapi.json" \
  --seed "$seed" --max-examples "$examples" --generation-database none --no-color) \
  || fail "API and document disagree; see the lines above; SEED=$seed repeats this run"

# The login must still be valid, and no request may have caused a panic.
call GET "$gateway/v1/users/me" "$TOKEN" </dev/null >/dev/null
if grep -E ' ERROR |panicked' "$work/log"; then fail "the orchestrator logged errors"; fi
