#!/usr/bin/env bash
# What launch/tpu.sh runs on each host of a TPU; nothing here knows of the other hosts.
#   host.sh install EXTRA COMMIT | mount BUCKET DIR | run [K=V ...] -- WORDS | status | logs | stop
# Each may be run again: a connection that broke half-way is tried again from the start.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
source launch/lib.sh
STATE="${JOPSD_STATE:-$HOME/.jopsd}"
JETSTREAM=google-jetstream==0.2.2 # without its requirements, see the Makefile
UV=uv==0.13.9
mkdir -p "$STATE"

# alive: the PID of the run on this host.
alive() {
  local pid
  pid="$(cat "$STATE/pid" 2>/dev/null)" || return
  # After a restart of the host the number may be another's.
  grep -qz '^jopsd\.train$' "/proc/$pid/cmdline" 2>/dev/null && printf '%s' "$pid"
}

# Images of TPU VMs have Python 3.10; one that is new enough is fetched.
make_venv() {
  local python
  for python in python3.11 python3.12 python3.13 python3; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$python" -m venv .venv
      return
    fi
  done
  python3 -m pip install --quiet --user "$UV"
  python3 -m uv venv --quiet --seed --python 3.11 .venv
}

install() {
  local extra="$1" commit="$2" pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
  if [[ $(cat .venv/.installed 2>/dev/null) == "$extra $commit" ]]; then
    say "$(hostname): $commit is installed"
    return
  fi
  [[ -x .venv/bin/python ]] || make_venv
  "${pip[@]}" --editable ".[$extra]" --constraint constraints.txt
  "${pip[@]}" --no-deps "$JETSTREAM"
  printf '%s %s\n' "$extra" "$commit" >.venv/.installed
  say "$(hostname): installed $commit"
}

# Checkpoints are written under another name and renamed, which gcsfuse refuses for folders unless told how large they
# may be; and a host must see at once what another has written, so no metadata is kept.
mount_bucket() {
  local bucket="$1" folder="$2"
  if mountpoint -q "$folder"; then
    return
  fi
  command -v gcsfuse >/dev/null || sudo apt-get -o DPkg::Lock::Timeout=300 install --yes --quiet gcsfuse >&2 ||
    die "$(hostname): gcsfuse is not installed and apt has none; put it on the image or use a shared disk, not --bucket"
  sudo mkdir -p "$folder"
  sudo chown "$(id -u):$(id -g)" "$folder"
  gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 "$bucket" "$folder" >&2 ||
    die "$(hostname): cannot mount bucket $bucket; may the service account of the TPU read and write it?"
}

start() {
  local settings=() line pid
  while [[ $1 != -- ]]; do
    settings+=("$1")
    shift
  done
  shift
  line="$(quoted "$@")"
  if pid="$(alive)"; then
    [[ $(cat "$STATE/words") == "$line" ]] || die "$(hostname): another run is going on: $(cat "$STATE/words")"
    say "$(hostname): already running as process $pid"
    return
  fi
  printf '%s' "$line" >"$STATE/words"
  rm -rf "$STATE/rc" "$STATE/pid" "$STATE/told"
  printf '%s\n' "--- $(date -u +%FT%TZ) $line" >>"$STATE/log"
  # In a session of its own, so that it outlives the connection.
  env "${settings[@]}" setsid nohup launch/host.sh _train "$@" </dev/null >>"$STATE/log" 2>&1 &
  # What is wrong with a config shows at once.
  for ((waited = 0; waited < ${JOPSD_LOOK:-5}; waited++)); do
    sleep 1
    if [[ -s $STATE/rc ]]; then
      [[ $(cat "$STATE/rc") == 0 ]] || die "$(hostname): it ended at once: $(tail -n 3 "$STATE/log")"
      break
    fi
  done
  say "$(hostname): started"
}

_train() {
  local rc=0
  # shellcheck source=launch/env.sh
  source launch/env.sh
  "${PYTHON:-.venv/bin/python}" -m jopsd.train "$@" &
  printf '%s' "$!" >"$STATE/pid"
  reap "$!" || rc=$?
  printf '%s' "$rc" >"$STATE/rc"
}

status() {
  local pid
  if pid="$(alive)"; then
    printf '%s: running as process %s\n' "$(hostname)" "$pid"
  elif [[ -s $STATE/rc ]]; then
    printf '%s: ended with exit code %s\n' "$(hostname)" "$(cat "$STATE/rc")"
  elif [[ -e $STATE/words ]]; then
    printf '%s: gone without an exit code, as after a restart of the host\n' "$(hostname)"
  else
    printf '%s: nothing was started\n' "$(hostname)"
  fi
}

# SIGTERM, then as long as a save may take. Never SIGKILL: that would lose what is being saved.
stop() {
  local pid waited
  if ! pid="$(alive)"; then
    status
    return
  fi
  # Once only, also where the connection broke and this is the second try: the trainer takes another for impatience.
  if mkdir "$STATE/told" 2>/dev/null; then
    kill -TERM "$pid" || true
  fi
  for ((waited = 0; waited < ${JOPSD_STOP_SECONDS:-300} * 5; waited++)); do
    if [[ -s $STATE/rc ]]; then
      status
      [[ $(cat "$STATE/rc") == 0 ]] || die "$(hostname): nothing was saved now: $(tail -n 1 "$STATE/log")"
      return
    fi
    sleep 0.2
  done
  die "$(hostname): process $pid still runs after ${JOPSD_STOP_SECONDS:-300} s; see the log"
}

verb="${1-}"
(($# == 0)) || shift
case "$verb" in
  install) install "$@" ;;
  mount) mount_bucket "$@" ;;
  run) start "$@" ;;
  _train) _train "$@" ;;
  status) status ;;
  logs) exec tail -n 100 -F "$STATE/log" ;;
  stop) stop ;;
  *) die "'$verb' is none of install, mount, run, status, logs, stop" ;;
esac
