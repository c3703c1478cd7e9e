#!/usr/bin/env bash
# Trains on all devices of this host:  launch/one_host.sh --config configs/opsd.yaml model.path=DIR data.source=ROWS
# Stopped for any reason, the same command resumes from the newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/env.sh
source launch/env.sh
PYTHON="${PYTHON:-.venv/bin/python}"
# exec, so that signals reach the trainer.
exec "$PYTHON" -m jopsd.train "$@"
