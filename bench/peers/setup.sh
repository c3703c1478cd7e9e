#!/usr/bin/env bash
# Makes DIR/env, a virtual environment of the peers, and DIR/smollm2, SmolLM2-135M-Instruct as a Hugging Face directory.
#   bench/peers/setup.sh [DIR]        DIR: default .peers in the root of the repository
# PYTHON names the interpreter. A build of torch for CPUs is a third of the size: say with pip's own settings where it is.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=$(realpath -m "${1:-$root/.peers}")
mkdir -p "$dir"
if [[ ! -x $dir/env/bin/python ]]; then
  "${PYTHON:-python3}" -m venv "$dir/env"
fi
"$dir/env/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/bench/peers/requirements.txt"
if [[ ! -f $dir/smollm2/config.json ]]; then
  cd "$root"
  HF_HUB_OFFLINE=1 "$dir/env/bin/python" -m bench.peers.smollm2 "$dir/smollm2"
fi
