#!/usr/bin/env bash
# Trains on TPUs or GPUs of a Kubernetes cluster (GKE), as a JobSet. docs/launching.md shows a whole run.
#   launch/gke.sh render|apply|status|logs|stop|resume|delete OPTIONS [-- --config FILE key=value ...]
#   --name                               or JOPSD_NAME; --namespace N (default)
#   --context                            the cluster, as `kubectl config get-contexts` has it; or JOPSD_CONTEXT
#   --image I                            of launch/Dockerfile, pushed where the cluster can pull it
#   --tpu tpu-v5p-slice --topology 4x4x4 --slices N (1) --chips-per-host N (4)
#   --gpu nvidia-h100-80gb --hosts N (1) --gpus-per-host N (8)
#   --claim C | --bucket B               what all hosts mount at /mnt/jopsd: a ReadWriteMany volume claim, or a bucket
#   --service-account S                  of Kubernetes, which may use the bucket
#   --secret S                           whose keys become environment, e.g. HF_TOKEN
#   --queue Q (of Kueue), --spot, --restarts N (10), --worker W (0), --yes (delete without asking), --dry-run
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/lib.sh
source launch/lib.sh

usage() {
  sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' launch/gke.sh >&2
  exit 2
}

# Kubernetes replaces $(NAME) in arguments, and $$ by $.
arguments() {
  yaml_list "${TRAINING[@]//\$/\$\$}"
}

# only OPTION: whether lines of a template that want it stay.
only() {
  case "$1" in
    queue) [[ -n $QUEUE ]] ;;
    bucket) [[ -n $BUCKET ]] ;;
    claim) [[ -n $CLAIM ]] ;;
    service_account) [[ -n $SERVICE_ACCOUNT ]] ;;
    secret) [[ -n $SECRET ]] ;;
    spot) [[ -n $SPOT ]] ;;
    *) die "the template has a line for '$1', which is no option" ;;
  esac
}

render() {
  local line key value values=(
    NAME "$(yaml_string "$NAME")" NAMESPACE "$(yaml_string "$NAMESPACE")" QUEUE "$(yaml_string "$QUEUE")"
    RESTARTS "$RESTARTS" SLICES "$SLICES" HOSTS "$HOSTS" PROCESSES "$(yaml_string "$HOSTS")" CHIPS "$CHIPS"
    ACCELERATOR "$(yaml_string "$ACCELERATOR")" TOPOLOGY "$(yaml_string "$TOPOLOGY")" IMAGE "$(yaml_string "$IMAGE")"
    SERVICE_ACCOUNT "$(yaml_string "$SERVICE_ACCOUNT")" SECRET "$(yaml_string "$SECRET")"
    CLAIM "$(yaml_string "$CLAIM")" BUCKET "$(yaml_string "$BUCKET")" MOUNT_OPTIONS "$(yaml_string "$(mount_options)")"
    COORDINATOR "$(yaml_string "$NAME-host-0-0.$NAME:8476")" ARGS "$(arguments)"
  )
  while IFS= read -r line; do
    if [[ $line =~ ^(.*[^\ ])\ +#\ only:\ ([a-z_]+)$ ]]; then
      only "${BASH_REMATCH[2]}" || continue
      line="${BASH_REMATCH[1]}"
    fi
    # The values of a line are put in from the right, so that no value is read for names.
    while [[ $line =~ ^(.*)@([A-Z_]+)@(.*)$ && $line != \#* ]]; do
      key="${BASH_REMATCH[2]}" value="$(lookup "$key" "${values[@]}")"
      printf -v "TAIL" '%s%s%s' "$value" "${BASH_REMATCH[3]}" "${TAIL-}"
      line="${BASH_REMATCH[1]}"
    done
    printf '%s%s\n' "$line" "${TAIL-}"
    TAIL=""
  done <"launch/gke/$KIND.yaml"
}

lookup() { # KEY KEY VALUE KEY VALUE ...
  local key="$1"
  shift
  while (($#)); do
    [[ $1 != "$key" ]] || { printf '%s' "$2"; return; }
    shift 2
  done
  die "launch/gke/$KIND.yaml wants @$key@, which there is not"
}

# As in launch/host.sh: folders can be renamed, and what another host wrote is seen at once.
mount_options() {
  local owner=""
  [[ $KIND == tpu ]] || owner=",uid=1000,gid=1000"
  printf 'implicit-dirs,rename-dir-limit=1000000,metadata-cache:ttl-secs:0%s' "$owner"
}

kube() { run kubectl --context="$CONTEXT" --namespace="$NAMESPACE" "$@"; }

apply() {
  local errors text
  if [[ -n $DRY_RUN ]]; then
    kube apply --filename=-
    render
    return
  fi
  errors="$(mktemp)"
  if render | kube apply --filename=- 2>"$errors"; then
    rm -f "$errors"
    return
  fi
  text="$(cat "$errors")"
  rm -f "$errors"
  say "$text"
  case "$text" in
    *'no matches for kind "JobSet"'*)
      die "the cluster has no JobSet controller; install it first (sigs.k8s.io/jobset)"
      ;;
    *"does not exist"* | *"no context exists"*)
      die "kubectl knows no context $CONTEXT; gcloud container clusters get-credentials makes one"
      ;;
    *immutable*)
      die "there is a $NAME already, with other settings: launch/gke.sh delete, then apply; the run resumes"
      ;;
    *Unauthorized* | *"logged in"* | *orbidden*)
      die "this account may not create JobSets in $NAMESPACE of $CONTEXT"
      ;;
    *) die "kubectl failed" ;;
  esac
}

# Pods get SIGTERM and their 300 seconds; the JobSet stays, so that resume needs no options.
suspend() {
  [[ -z $QUEUE ]] || die "Kueue starts a suspended JobSet of its queue again; launch/gke.sh delete saves and ends it"
  kube patch jobset "$NAME" --type=merge --patch="{\"spec\":{\"suspend\":$1}}"
}

hosts_of_topology() {
  local chips=1 side
  [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || die "--topology '$TOPOLOGY' is not of the form 4x4 or 4x4x4"
  for side in ${TOPOLOGY//x/ }; do chips=$((chips * side)); done
  ((chips > CHIPS)) || CHIPS=$chips
  ((chips % CHIPS == 0)) || die "$chips chips of --topology $TOPOLOGY are not hosts of --chips-per-host $CHIPS"
  HOSTS=$((chips / CHIPS))
}

verb="${1-}"
(($# == 0)) || shift
NAME="${JOPSD_NAME-}" CONTEXT="${JOPSD_CONTEXT-}" NAMESPACE=default IMAGE="" KIND="" ACCELERATOR="" TOPOLOGY=""
SLICES=1 HOSTS=1 CHIPS="" CLAIM="" BUCKET="" SERVICE_ACCOUNT="" SECRET="" QUEUE="" SPOT="" RESTARTS=10 WORKER=0 YES=""
TRAINING=()
while (($#)); do
  flag="$1"
  shift
  case "$flag" in
    --) TRAINING=("$@"); break ;;
    --spot) SPOT=yes; continue ;;
    --yes) YES=yes; continue ;;
    --dry-run) DRY_RUN=yes; continue ;;
    --*=*) value="${flag#*=}" flag="${flag%%=*}" ;;
    --*) (($#)) || die "$flag needs a value"; value="$1"; shift ;;
    *) die "'$flag' is no option; what jopsd.train takes stands after --" ;;
  esac
  case "$flag" in
    --name) NAME="$value" ;;
    --context) CONTEXT="$value" ;;
    --namespace) NAMESPACE="$value" ;;
    --image) IMAGE="$value" ;;
    --tpu | --gpu)
      [[ -z $KIND ]] || die "--tpu and --gpu exclude each other"
      KIND="${flag#--}" ACCELERATOR="$value"
      ;;
    --topology) TOPOLOGY="$value" ;;
    --slices) need_count "$flag" "$value"; SLICES="$value" ;;
    --hosts) need_count "$flag" "$value"; HOSTS="$value" ;;
    --chips-per-host | --gpus-per-host) need_count "$flag" "$value"; CHIPS="$value" ;;
    --claim) CLAIM="$value" ;;
    --bucket) BUCKET="${value#gs://}" ;;
    --service-account) SERVICE_ACCOUNT="$value" ;;
    --secret) SECRET="$value" ;;
    --queue) QUEUE="$value" ;;
    --restarts) need_count "$flag" "$value"; RESTARTS="$value" ;;
    --worker) WORKER="$value" ;;
    *) die "there is no option $flag; launch/gke.sh help lists them" ;;
  esac
done

case "$verb" in
  render | apply | status | logs | stop | resume | delete) ;;
  *) usage ;;
esac
need_name --name "$NAME" JOPSD_NAME
need_name --namespace "$NAMESPACE"
if [[ $verb != render ]]; then
  need --context "$CONTEXT" JOPSD_CONTEXT
  need_program kubectl "see the page on installing the tools of Kubernetes"
fi
if [[ $verb == render || $verb == apply ]]; then
  case "$KIND" in
    tpu) CHIPS="${CHIPS:-4}"; hosts_of_topology ;;
    gpu) CHIPS="${CHIPS:-8}"; ((SLICES == 1)) || die "--slices is for TPUs; GPUs have --hosts" ;;
    *) die "which hosts? give --tpu tpu-v5p-slice --topology 4x4x4, or --gpu nvidia-h100-80gb --hosts 4" ;;
  esac
  need --image "$IMAGE"
  [[ -z $CLAIM || -z $BUCKET ]] || die "--claim and --bucket exclude each other"
  [[ -n $CLAIM$BUCKET ]] || die "no shared disk; give --claim or --bucket: hosts save one checkpoint together"
  check_training "${TRAINING[@]}"
  [[ $OUTPUT_DIR == /mnt/jopsd/* ]] ||
    die "output_dir '$OUTPUT_DIR' is not on the shared disk; use output_dir=/mnt/jopsd/..."
fi

case "$verb" in
  render) render ;;
  apply) apply ;;
  status) kube get pods --output=wide --selector="jobset.sigs.k8s.io/jobset-name=$NAME" ;;
  logs)
    selector="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0"
    selector+=",batch.kubernetes.io/job-completion-index=$WORKER"
    kube logs --follow --tail=100 --container=train --selector="$selector"
    ;;
  stop) suspend true ;;
  resume) suspend false ;;
  delete) [[ -n $YES ]] || confirm "$NAME"; kube delete jobset "$NAME" ;;
esac
