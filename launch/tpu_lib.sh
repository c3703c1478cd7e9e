# shellcheck shell=bash
# shellcheck disable=SC2034 # STATE and FAULT are read where this is sourced
# How launch/tpu.sh talks to Google Cloud and what it makes of the answers. Sourced by it; the upper-case names are its.

check_accelerator() {
  if [[ -n $ACCELERATOR ]]; then
    [[ -z $TYPE$TOPOLOGY ]] || die "give --accelerator-type, or --type with --topology, not both"
  else
    [[ -n $TYPE && -n $TOPOLOGY ]] || die "which TPU? give --accelerator-type v5p-128, or --type v5p --topology 4x4x4"
  fi
  runtime_version >/dev/null
}

# The image of a generation's hosts.
runtime_version() {
  if [[ -n $RUNTIME ]]; then
    printf '%s' "$RUNTIME"
    return
  fi
  case "${ACCELERATOR:-$TYPE}" in
    v2* | v3* | v4*) printf tpu-ubuntu2204-base ;;
    v5p*) printf v2-alpha-tpuv5 ;;
    v5lite* | v5e*) printf v2-alpha-tpuv5-lite ;;
    v6e*) printf v2-alpha-tpuv6e ;;
    tpu7x* | v7x*) die "TPU7x is there on GKE only: launch/gke.sh" ;;
    *) die "no runtime version is known for '${ACCELERATOR:-$TYPE}'; give --runtime-version" ;;
  esac
}

# account_fault TEXT: what is wrong with the login, the project or its rights; nothing if that is not it.
account_fault() {
  case "$1" in
    *"active account selected"* | *Reauthentication* | *"refreshing your current auth tokens"* | *invalid_grant*)
      echo "gcloud is not logged in: gcloud auth login"
      ;;
    *SERVICE_DISABLED* | *"has not been used in project"* | *"not enabled on project"*)
      echo "the TPU API is off in project $PROJECT: gcloud services enable tpu.googleapis.com --project=$PROJECT"
      ;;
    *PERMISSION_DENIED*)
      echo "this account may not do that in project $PROJECT; it needs the role roles/tpu.admin"
      ;;
  esac
}

# reason TEXT: what an error of gcloud means and what to do; TEXT itself where it is none of the known ones.
# Stockouts come before quotas: both have the code RESOURCE_EXHAUSTED.
reason() {
  local text="$1" quota fault
  fault="$(account_fault "$text")"
  if [[ -n $fault ]]; then
    echo "$fault"
    return
  fi
  case "$text" in
    *"no more capacity"* | *"nsufficient capacity"* | *"nsufficient reserved capacity"* | *"not enough resources"*)
      fault="another zone, a smaller one"
      [[ $TIER == spot ]] && fault+=" or one without --spot" || fault+=" or --spot"
      echo "$ZONE has no capacity of this kind now: try $fault"
      ;;
    *"uota limit"* | *"Quota '"* | *RESOURCE_EXHAUSTED*)
      quota="$(grep -oE "TPU[A-Za-z0-9]+ForTPUAPI" <<<"$text" | sort -u | paste -sd' ' -)" || true
      echo "the quota ${quota:+$quota }of project $PROJECT is used up, so trying again is no use. Ask for more, or" \
        "delete requests that are suspended or failed, which count too:" \
        "gcloud compute tpus queued-resources list --zone=$ZONE --project=$PROJECT"
      ;;
    *ALREADY_EXISTS* | *"already exists"*)
      echo "there is a $NAME in $ZONE already: launch/tpu.sh status, or choose another --name"
      ;;
    *) echo "gcloud failed: $text" ;;
  esac
}

# asked COMMAND...: once; when it fails, the reason.
asked() {
  local errors text
  if [[ -n $DRY_RUN ]]; then
    run "$@"
    return
  fi
  errors="$(mktemp)"
  if "$@" 2>"$errors"; then
    cat "$errors" >&2
    rm -f "$errors"
    return
  fi
  text="$(cat "$errors")"
  rm -f "$errors"
  say "$text"
  die "$(reason "$text")"
}

# describe: STATE of the request, and of its hosts once there are any; FAULT is what it failed of.
describe() {
  local command=(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}"
    "--format=value(state.state,state.failedData.error.message)") try text node
  STATE="" FAULT=""
  if [[ -n $DRY_RUN ]]; then
    run "${command[@]}"
    return
  fi
  for ((try = 1; ; try++)); do
    if text="$("${command[@]}" 2>&1)"; then
      break
    elif [[ $text == *NOT_FOUND* ]]; then
      STATE=MISSING
      return
    elif ((try >= JOPSD_TRIES)) || [[ $(reason "$text") != "gcloud failed: "* ]]; then
      die "$(reason "$text")"
    fi
    paused "$try"
  done
  IFS=$'\t' read -r STATE FAULT <<<"$(tail -n 1 <<<"$text")"
  # A preempted host can be gone for minutes before its request says so.
  [[ $STATE == ACTIVE ]] || return 0
  for node in $(nodes); do
    text="$(gcloud compute tpus tpu-vm describe "$node" "${WHERE[@]}" "--format=value(state)" 2>/dev/null || true)"
    case "$text" in
      PREEMPTED | TERMINATED) STATE=PREEMPTED FAULT="host group $node is $text" ;;
    esac
  done
}

nodes() {
  local slice
  if ((SLICES == 1)); then
    echo "$NAME"
  else
    for ((slice = 0; slice < SLICES; slice++)); do echo "$NAME-$slice"; done
  fi
}

# every_node FUNCTION WORDS...: FUNCTION NODE WORDS... on all slices at once.
every_node() {
  local function="$1" node child children=() rc=0
  shift
  for node in $(nodes); do
    if [[ -n $DRY_RUN ]]; then
      "$function" "$node" "$@"
    else
      "$function" "$node" "$@" &
      children+=("$!")
    fi
  done
  for child in "${children[@]}"; do
    wait "$child" || rc=1
  done
  return "$rc"
}

copy() { # NODE FILE
  connected "$1" all scp "$2" "$1:"
}

remote() { # NODE WORKERS COMMAND
  connected "$1" "$2" ssh "$1" --command="$3"
}

# connected NODE WORKERS ssh|scp WORDS...: the command is done on these workers. Connections that break are tried again,
# a bounded number of times and only where they broke; a command that fails is not.
connected() {
  local node="$1" workers="$2" output fault try rc
  shift 2
  if [[ -n $DRY_RUN ]]; then
    run gcloud compute tpus tpu-vm "$@" "${WHERE[@]}" --worker="$workers"
    return
  fi
  output="$(mktemp)"
  for ((try = 1; ; try++)); do
    rc=0
    gcloud compute tpus tpu-vm "$@" "${WHERE[@]}" --worker="$workers" 2>&1 | tee "$output" || rc=$?
    if ((rc == 0)); then
      rm -f "$output"
      return
    fi
    # Of gcloud's own words only: a log on the host may well speak of RESOURCE_EXHAUSTED.
    fault="$(account_fault "$(grep '^ERROR: (gcloud' "$output" || true)")"
    [[ -z $fault ]] || die "$fault"
    fault="$(failed_workers "$output")"
    if [[ -n $fault ]] || ! unreachable "$rc" "$output"; then
      die "$node: the command failed on worker ${fault:-$workers} (exit code $rc), see above; it was not tried again"
    fi
    workers="$(broken_workers "$output" "$workers")"
    if ((try >= JOPSD_TRIES)); then
      die "$node: no connection to worker $workers in $try tries. Is it up (launch/tpu.sh status), may this network" \
        "reach its port 22, and is the key loaded (ssh-add ~/.ssh/google_compute_engine)?"
    fi
    say "$node: no connection to worker $workers"
    paused "$try"
  done
}

unreachable() { # EXIT_CODE FILE
  (($1 == 255)) || grep -qE 'return code \[255\]|exit status 255|cannot be currently connected' "$2"
}

# failed_workers FILE: 1,4 whose command failed, as gcloud says when it runs on several.
failed_workers() {
  sed -n 's/^##### Command execution on worker \([0-9]*\) failed with exit status \([0-9]*\).*/\1 \2/p' "$1" |
    awk '$2 != 255 {print $1}' | sort -un | paste -sd, -
}

# broken_workers FILE DEFAULT: those that could not be reached. gcloud does not name them, but attempts them most often.
broken_workers() {
  local found
  found="$(sed -n -e 's/.*Attempting to connect to worker \([0-9]*\)\.\.\..*/\1/p' "$1" | sort -n | uniq -c |
    awk '{n[$2] = $1; if ($1 > most) most = $1} END {if (most > 1) for (w in n) if (n[w] == most) print w}' |
    sort -n | paste -sd, -)"
  printf '%s' "${found:-$2}"
}

# The log of one host, through broken connections. WORKER is W, or SLICE/W of several slices.
follow() {
  local node="$NAME" index="${WORKER#*/}" try rc=255
  ((SLICES == 1)) || node="$NAME-0"
  [[ $WORKER != */* ]] || node="$NAME-${WORKER%%/*}"
  for ((try = 1; rc == 255; try++)); do
    rc=0
    run gcloud compute tpus tpu-vm ssh "$node" --command="bash jopsd/launch/host.sh logs" "${WHERE[@]}" \
      --worker="$index" || rc=$?
    if ((rc == 255)); then
      ((try < JOPSD_TRIES)) || die "$node: no connection to worker $index in $try tries"
      paused "$try"
    fi
  done
  return "$rc"
}
