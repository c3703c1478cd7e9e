#!/usr/bin/env bash
# Trains on all devices of this host:  launch/one_host.sh --config configs/opsd.yaml model.path=DIR data.source=ROWS
# Stopped for any reason, the same command resumes from the newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
# Compiled programs are kept between starts, so that a resumed run steps at once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/jopsd/compiled}"
# A GPU is ours alone; the rest is left to cuDNN and NCCL. TPUs and CPUs do not read this.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
PYTHON="${PYTHON:-.venv/bin/python}"
# exec, so that signals reach the trainer.
exec "$PYTHON" -m jopsd.train "$@"
