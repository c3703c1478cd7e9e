#!/usr/bin/env bash
# Trains on a TPU pod of Google Cloud, by queued resources. docs/launching.md shows a whole run.
#   launch/tpu.sh create|wait|install|run|logs|status|stop|resume|delete OPTIONS [-- --config FILE key=value ...]
# Give every subcommand the same options; each takes what it needs.
#   --name, --zone, --project           or JOPSD_NAME, JOPSD_ZONE, JOPSD_PROJECT; never guessed
#   --accelerator-type v5p-128          or --type v5p --topology 4x4x4
#   --slices N                          several of them, joined by the data-centre network
#   --spot | --reserved                 default on demand
#   --runtime-version V                 default by generation
#   --create-flag=FLAG                  another flag of `queued-resources create`, e.g. --create-flag=--network=NET
#   --bucket B --mount DIR              mounts B on every host; DIR is /mnt/jopsd
#   --env K=V                           of the run; may stand several times
#   --worker W (0; SLICE/W), --timeout S (21600, for wait), --yes (delete without asking)
#   --dry-run                           prints the commands and runs none
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
source launch/lib.sh
# shellcheck source=launch/tpu_lib.sh
source launch/tpu_lib.sh

usage() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' launch/tpu.sh >&2
  exit 2
}

create() {
  local flags=() track=()
  if [[ -n $ACCELERATOR ]]; then
    flags+=(--accelerator-type="$ACCELERATOR")
  else
    flags+=(--type="$TYPE" --topology="$TOPOLOGY")
    track=(alpha) # the released command knows no type after v4
  fi
  flags+=(--runtime-version="$(runtime_version)")
  if ((SLICES > 1)); then
    flags+=(--node-count="$SLICES" --node-prefix="$NAME")
  else
    flags+=(--node-id="$NAME")
  fi
  [[ -z $TIER ]] || flags+=("--$TIER")
  flags+=("${CREATE_FLAGS[@]}")
  asked gcloud "${track[@]}" compute tpus queued-resources create "$NAME" "${WHERE[@]}" "${flags[@]}"
  [[ -n $DRY_RUN ]] || say "$NAME is asked for; launch/tpu.sh wait says when it is there"
}

# Until the hosts are there. Being queued is no fault: only the time limit ends it.
wait_for() {
  local begin=$SECONDS last=""
  if [[ -n $DRY_RUN ]]; then
    describe
    return
  fi
  while true; do
    describe
    [[ $STATE == "$last" ]] || say "$(date -u +%T) $NAME: $STATE${FAULT:+ ($FAULT)}"
    last="$STATE"
    case "$STATE" in
      ACTIVE) return ;;
      FAILED) die "$(reason "$FAULT")" ;;
      SUSPENDING | SUSPENDED | PREEMPTED) die "$NAME was preempted ($STATE); launch/tpu.sh resume asks for it again" ;;
      MISSING) die "there is no $NAME in $ZONE of project $PROJECT; launch/tpu.sh create asks for one" ;;
      DELETING) die "$NAME is being deleted" ;;
    esac
    if ((SECONDS - begin >= TIMEOUT)); then
      die "$NAME is still $STATE after $TIMEOUT s and stays in the queue: wait again, delete it, or try another zone" \
        "or --spot"
    fi
    sleep "${JOPSD_POLL:-30}"
  done
}

# The committed tree goes to all hosts, so that what runs has a name.
install() {
  local commit archive command
  commit="$(git rev-parse HEAD)"
  if [[ -n $(git status --porcelain) ]]; then
    say "note: changes that are not committed stay here; the hosts get $commit"
  fi
  archive="${TMPDIR:-/tmp}/jopsd-$commit.tar.gz"
  run git archive --format=tar.gz --output="$archive" HEAD
  every_node copy "$archive"
  # What a running process may still import is not replaced under it.
  command="if [ -e jopsd/launch/host.sh ] && bash jopsd/launch/host.sh status | grep -q running; then"
  command+=" echo 'error: a run is going on here; stop it first' >&2; exit 1; fi"
  command+="; mkdir -p jopsd && find jopsd -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +"
  command+=" && tar -xzf jopsd-$commit.tar.gz -C jopsd && bash jopsd/launch/host.sh install tpu $commit"
  every_node remote all "$command"
  mount_bucket
  [[ -n $DRY_RUN ]] || rm -f "$archive"
}

mount_bucket() {
  [[ -z $BUCKET ]] || every_node remote all "$(quoted bash jopsd/launch/host.sh mount "$BUCKET" "$MOUNT")"
}

start() {
  local settings=(JOPSD_PLATFORM=tpu "${ENVIRONMENT[@]}")
  [[ $OUTPUT_DIR != "$MOUNT"/* ]] || settings+=(JOPSD_SHARED="$MOUNT")
  every_node remote all "$(quoted bash jopsd/launch/host.sh run "${settings[@]}" -- "${TRAINING[@]}")"
  [[ -n $DRY_RUN ]] || say "started on all hosts; launch/tpu.sh logs follows it"
}

# Asks again for what was preempted or failed and goes on from the newest checkpoint. Where nothing is lost, nothing is
# deleted: then only what does not run is started.
resume() {
  describe
  say "$NAME: ${STATE:-the state is not asked in a dry run, which shows all that a lost TPU would need}"
  case "$STATE" in
    ACTIVE)
      mount_bucket
      start
      return
      ;;
    SUSPENDING) until [[ $STATE != SUSPENDING ]]; do sleep "${JOPSD_POLL:-30}"; describe; done ;;
  esac
  if [[ -n $DRY_RUN || $STATE =~ ^(SUSPENDED|FAILED|PREEMPTED)$ ]]; then
    remove # its hosts and their disks are gone already; the entry would go on counting against the quota
  fi
  if [[ -n $DRY_RUN || $STATE =~ ^(SUSPENDED|FAILED|PREEMPTED|MISSING)$ ]]; then
    create
  fi
  wait_for
  install
  start
}

status() {
  describe
  [[ -n $DRY_RUN ]] || printf '%s: %s%s\n' "$NAME" "$STATE" "${FAULT:+ ($FAULT)}"
  if [[ -n $DRY_RUN || $STATE == ACTIVE ]]; then
    every_node remote all "bash jopsd/launch/host.sh status"
  fi
}

remove() {
  asked gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force
}

verb="${1-}"
(($# == 0)) || shift
NAME="${JOPSD_NAME-}" ZONE="${JOPSD_ZONE-}" PROJECT="${JOPSD_PROJECT-}"
ACCELERATOR="" TYPE="" TOPOLOGY="" RUNTIME="" TIER="" BUCKET="" MOUNT=/mnt/jopsd YES=""
SLICES=1 WORKER=0 TIMEOUT=21600 CREATE_FLAGS=() ENVIRONMENT=() TRAINING=()
while (($#)); do
  flag="$1"
  shift
  case "$flag" in
    --) TRAINING=("$@"); break ;;
    --spot | --reserved)
      [[ -z $TIER ]] || die "--spot and --reserved exclude each other"
      TIER="${flag#--}"
      continue
      ;;
    --yes) YES=yes; continue ;;
    --dry-run) DRY_RUN=yes; continue ;;
    --*=*) value="${flag#*=}" flag="${flag%%=*}" ;;
    --*) (($#)) || die "$flag needs a value"; value="$1"; shift ;;
    *) die "'$flag' is no option; what jopsd.train takes stands after --" ;;
  esac
  case "$flag" in
    --name) NAME="$value" ;;
    --zone) ZONE="$value" ;;
    --project) PROJECT="$value" ;;
    --accelerator-type) ACCELERATOR="$value" ;;
    --type) TYPE="$value" ;;
    --topology) TOPOLOGY="$value" ;;
    --runtime-version) RUNTIME="$value" ;;
    --slices) need_count "$flag" "$value"; SLICES="$value" ;;
    --create-flag) CREATE_FLAGS+=("$value") ;;
    --bucket) BUCKET="${value#gs://}" ;;
    --mount) MOUNT="${value%/}" ;;
    --env) [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env takes K=V, got '$value'"; ENVIRONMENT+=("$value") ;;
    --worker) WORKER="$value" ;;
    --timeout) need_count "$flag" "$value"; TIMEOUT="$value" ;;
    *) die "there is no option $flag; launch/tpu.sh help lists them" ;;
  esac
done

case "$verb" in
  create | wait | install | run | logs | status | stop | resume | delete) ;;
  *) usage ;;
esac
need_name --name "$NAME" JOPSD_NAME
need --zone "$ZONE" JOPSD_ZONE
need --project "$PROJECT" JOPSD_PROJECT
WHERE=(--zone="$ZONE" --project="$PROJECT" --quiet)
[[ $verb != create && $verb != resume ]] || check_accelerator
[[ $verb != run && $verb != resume ]] || check_training "${TRAINING[@]}"
need_program gcloud "see the page on installing the Google Cloud CLI"

case "$verb" in
  create) create ;;
  wait) wait_for ;;
  install) install ;;
  run) start ;;
  logs) follow ;;
  status) status ;;
  stop) every_node remote all "bash jopsd/launch/host.sh stop" ;;
  resume) resume ;;
  delete) [[ -n $YES ]] || confirm "$NAME"; remove ;;
esac
