#!/usr/bin/env bash
# Trains in N processes on this machine's CPU, as N hosts would:  launch/local.sh 2 --config configs/tiny/opsd.yaml
# JOPSD_DEVICES (1): virtual devices of each. JOPSD_PORT: of the coordinator; default a free one.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
source launch/lib.sh
(($# >= 2)) || die "usage: launch/local.sh PROCESSES --config FILE [key=value ...]"
need_count PROCESSES "$1"
count="$1"
shift
PYTHON="${PYTHON:-.venv/bin/python}"
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${JOPSD_DEVICES:-1}" JOPSD_PLATFORM=cpu
# shellcheck source=launch/env.sh
source launch/env.sh
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port="${JOPSD_PORT:-$("$PYTHON" -c "$free_port")}"

children=()
# Also by Ctrl-C: shells start children in the background deaf to it.
stop() { kill -TERM "${children[@]}" 2>/dev/null || true; }
trap stop TERM INT
for ((index = 0; index < count; index++)); do
  "$PYTHON" -m jopsd.train --coordinator "127.0.0.1:$port" --processes "$count" --process "$index" "$@" &
  children+=($!)
done

# The first that fails is the reason; the others cannot go on without it.
failed=0
while ((${#children[@]})); do
  left=()
  for child in "${children[@]}"; do
    if kill -0 "$child" 2>/dev/null; then
      left+=("$child")
      continue
    fi
    rc=0
    wait "$child" || rc=$?
    if ((rc != 0 && failed == 0)); then
      failed=$rc
      say "process $child ended with exit code $rc; stopping the others"
      stop
    fi
  done
  children=("${left[@]}")
  sleep 0.2
done
exit "$failed"
