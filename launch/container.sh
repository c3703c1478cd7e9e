#!/usr/bin/env bash
# Entry point of the image: trains, passes signals on, and ends as the training did.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
source launch/lib.sh
# shellcheck source=launch/env.sh
source launch/env.sh
# To Kubernetes an exit of 0 is a job that is done: a run that was told to end must not look like one.
export JOPSD_STOPPED_EXIT="${JOPSD_STOPPED_EXIT:-143}"
# Not exec: the kernel drops signals to process 1 until it asks for them, and Python asks late.
child=""
trap '[[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
"${PYTHON:-python}" -m jopsd.train "$@" &
child=$!
reap "$child"
