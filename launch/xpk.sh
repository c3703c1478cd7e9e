#!/usr/bin/env bash
# Trains on a cluster made by XPK, which keeps JobSet, Kueue and the links between GPU hosts in order.
#   launch/xpk.sh create|list|delete OPTIONS [-- --config FILE key=value ...]
#   --name, --cluster, --zone, --project  or JOPSD_NAME, JOPSD_CLUSTER, JOPSD_ZONE, JOPSD_PROJECT; never guessed
#   --image I                             of launch/Dockerfile
#   --tpu-type v5p-128 --slices N (1), or --device-type h100-mega-80gb-8 --hosts N (1)
#   --storage S                           attached with `xpk storage attach --mount-point=/mnt/jopsd`
#   --restarts N (10), --yes (delete without asking), --dry-run
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
source launch/lib.sh

usage() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' launch/xpk.sh >&2
  exit 2
}

# XPK puts the command into a script between ( and ), in YAML, for GPUs in a double-quoted scalar of it.
command_line() {
  local line
  line="exec /app/launch/container.sh $(quoted "${TRAINING[@]}")"
  [[ $line != *$'\n'* ]] || die "xpk takes no line breaks in arguments; put the value into a config file"
  if [[ -n $DEVICE_TYPE ]]; then
    [[ $line != *[\"\\]* ]] || die "xpk takes no \" or \\ in arguments on GPUs; put the value into a config file"
    # What XPK tells a GPU pod of its place.
    line="JOPSD_PROCESSES=\$NNODES JOPSD_PROCESS=\$NODE_RANK $line"
    line="JOPSD_COORDINATOR=\$JAX_COORDINATOR_ADDRESS:\$JAX_COORDINATOR_PORT $line"
  fi
  printf '%s' "$line"
}

create() {
  local flags=(--tpu-type="$TPU_TYPE" --num-slices="$COUNT") platform=tpu
  if [[ -n $DEVICE_TYPE ]]; then
    flags=(--device-type="$DEVICE_TYPE" --num-nodes="$COUNT") platform=gpu
  fi
  # A lost host ends the others with 1, and XPK restarts only after 42, 127 and above unless told so. Its own 30 seconds
  # are too few to save.
  run xpk workload create --workload="$NAME" "${WHERE[@]}" "${flags[@]}" --docker-image="$IMAGE" --storage="$STORAGE" \
    --max-restarts="$RESTARTS" --restart-on-exit-codes=1 --termination-grace-period-seconds=300 \
    --env="JOPSD_PLATFORM=$platform" --env=JOPSD_SHARED=/mnt/jopsd --command="$(command_line)"
}

verb="${1-}"
(($# == 0)) || shift
NAME="${JOPSD_NAME-}" CLUSTER="${JOPSD_CLUSTER-}" ZONE="${JOPSD_ZONE-}" PROJECT="${JOPSD_PROJECT-}"
IMAGE="" TPU_TYPE="" DEVICE_TYPE="" COUNT=1 STORAGE="" RESTARTS=10 YES="" TRAINING=()
while (($#)); do
  flag="$1"
  shift
  case "$flag" in
    --) TRAINING=("$@"); break ;;
    --yes) YES=yes; continue ;;
    --dry-run) DRY_RUN=yes; continue ;;
    --*=*) value="${flag#*=}" flag="${flag%%=*}" ;;
    --*) (($#)) || die "$flag needs a value"; value="$1"; shift ;;
    *) die "'$flag' is no option; what jopsd.train takes stands after --" ;;
  esac
  case "$flag" in
    --name) NAME="$value" ;;
    --cluster) CLUSTER="$value" ;;
    --zone) ZONE="$value" ;;
    --project) PROJECT="$value" ;;
    --image) IMAGE="$value" ;;
    --tpu-type) TPU_TYPE="$value" ;;
    --device-type) DEVICE_TYPE="$value" ;;
    --slices | --hosts) need_count "$flag" "$value"; COUNT="$value" ;;
    --storage) STORAGE="$value" ;;
    --restarts) need_count "$flag" "$value"; RESTARTS="$value" ;;
    *) die "there is no option $flag; launch/xpk.sh help lists them" ;;
  esac
done

case "$verb" in
  create | list | delete) ;;
  *) usage ;;
esac
[[ $verb == list ]] || need_name --name "$NAME" JOPSD_NAME
need --cluster "$CLUSTER" JOPSD_CLUSTER
need --zone "$ZONE" JOPSD_ZONE
need --project "$PROJECT" JOPSD_PROJECT
WHERE=(--cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT")
if [[ $verb == create ]]; then
  [[ -n $TPU_TYPE || -n $DEVICE_TYPE ]] || die "which hosts? give --tpu-type v5p-128 or --device-type h100-mega-80gb-8"
  [[ -z $TPU_TYPE || -z $DEVICE_TYPE ]] || die "--tpu-type and --device-type exclude each other"
  need --image "$IMAGE"
  need --storage "$STORAGE"
  check_training "${TRAINING[@]}"
  command_line >/dev/null
fi
need_program xpk "see its page, or use launch/gke.sh, which needs kubectl only"

case "$verb" in
  create) create ;;
  list) run xpk workload list "${WHERE[@]}" ;;
  delete)
    [[ -n $YES ]] || confirm "$NAME"
    run xpk workload delete --workload="$NAME" "${WHERE[@]}" --force
    ;;
esac
