# shellcheck shell=bash
# What the launchers share: errors, quoting, dry runs, retries. Sourced, not run.

# Seconds of the first pause between tries; each pause is twice the one before.
JOPSD_PAUSE="${JOPSD_PAUSE:-10}"
JOPSD_TRIES="${JOPSD_TRIES:-4}"
DRY_RUN="${DRY_RUN:-}"

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# quoted WORDS...: one line that any POSIX shell reads back as the same words.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'${word//"'"/"'\\''"}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# yaml_string TEXT: a double-quoted scalar that YAML (and JSON) reads back as TEXT.
yaml_string() {
  local text="$1"
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  text="${text//$'\n'/\\n}"
  text="${text//$'\t'/\\t}"
  text="${text//$'\r'/\\r}"
  printf '"%s"' "$text"
}

# yaml_list WORDS...: a flow list of strings.
yaml_list() {
  local word line=""
  for word in "$@"; do
    line+="${line:+, }$(yaml_string "$word")"
  done
  printf '[%s]' "$line"
}

# run COMMAND...: runs it, or under --dry-run prints it.
run() {
  if [[ -n $DRY_RUN ]]; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

# need FLAG VALUE [VARIABLE]: VALUE is there.
need() {
  [[ -n $2 ]] || die "$1 is empty; give $1 VALUE${3:+, or set $3}"
}

# need_name FLAG VALUE [VARIABLE]: VALUE is what Google Cloud and Kubernetes take as a name.
need_name() {
  need "$@"
  [[ $2 =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    die "$1 '$2' is no name: up to 40 lower-case letters, digits and hyphens, a letter first"
}

# need_count FLAG VALUE: VALUE is 1, 2, 3, ...
need_count() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 must be a number of 1 or more, got '$2'"
}

need_program() {
  [[ -n $DRY_RUN ]] || command -v "$1" >/dev/null || die "$1 is not installed: $2"
}

# confirm NAME: the user types NAME again.
confirm() {
  local typed=""
  [[ -z $DRY_RUN ]] || return 0
  printf 'This deletes %s and everything on its disks. Type its name to go on: ' "$1" >&2
  read -r typed || true
  [[ $typed == "$1" ]] || die "typed '$typed', not '$1': nothing was deleted"
}

# paused TRY: sleeps before the next try, longer each time.
paused() {
  local seconds=$((JOPSD_PAUSE * 2 ** ($1 - 1)))
  say "trying again in $seconds s ($1 of $JOPSD_TRIES)"
  sleep "$seconds"
}

# reap PID: waits for a child and returns its exit code. By short naps: a signal to this shell ends `wait` early.
reap() {
  while kill -0 "$1" 2>/dev/null; do sleep 0.2; done
  wait "$1"
}

# check_training WORDS...: what comes after --, as far as it can be told without Python.
# CONFIG and OUTPUT_DIR are set. Hosts that write to different places cannot save one checkpoint together.
check_training() {
  local word
  CONFIG="" OUTPUT_DIR=""
  while (($#)); do
    word="$1"
    shift
    case "$word" in
      --config) CONFIG="${1-}"; (($# == 0)) || shift ;;
      --config=*) CONFIG="${word#*=}" ;;
      output_dir=*) OUTPUT_DIR="${word#*=}" ;;
      *=*) ;;
      *) die "'$word' is neither --config FILE nor an override such as train.steps=100" ;;
    esac
  done
  [[ -n $CONFIG ]] || die "no --config FILE; on most launchers it stands after --, followed by overrides"
  if [[ -z $OUTPUT_DIR && -f $CONFIG ]]; then
    OUTPUT_DIR="$(sed -n 's/^output_dir: *//p' "$CONFIG" | head -n 1)"
  fi
  [[ $OUTPUT_DIR == /* ]] ||
    die "output_dir '$OUTPUT_DIR' is not an absolute path; give one on a disk that all hosts share: output_dir=/mnt/..."
}
