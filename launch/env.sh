# shellcheck shell=bash
# Environment of a run, each value with its reason. Sourced by the launchers; what is already set stays.
#   JOPSD_PLATFORM   tpu, gpu or cpu; default: what devices there are
#   JOPSD_SHARED     a folder that all hosts see

if [[ -z ${JOPSD_PLATFORM-} ]]; then
  if [[ -e /dev/nvidiactl ]]; then
    JOPSD_PLATFORM=gpu
  elif [[ -e /dev/accel0 || -e /dev/vfio/0 ]]; then
    JOPSD_PLATFORM=tpu
  else
    JOPSD_PLATFORM=cpu
  fi
fi
export JOPSD_PLATFORM

# Compiled programs are kept between starts, so that a resumed run steps at once. Of several processes only the first
# writes them, so on several hosts the folder must be shared, or all others compile every time.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${JOPSD_SHARED:-$HOME/.cache/jopsd}/compiled}"

# Lines in the log when they happen: a host that dies takes its buffers with it.
export PYTHONUNBUFFERED=1

case "$JOPSD_PLATFORM" in
  gpu)
    # The GPUs are ours alone; the rest is left to cuDNN and NCCL.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
    # Gathers the next layer's weights while this one computes, which is where fsdp over several GPUs loses its time.
    export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
    # Says which link failed when one does, and nothing else.
    export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    ;;
  tpu)
    # Nothing in LIBTPU_INIT_ARGS: the compiler overlaps collectives by itself, and a flag that a later libtpu
    # has dropped ends the process at start. XLA_PYTHON_CLIENT_MEM_FRACTION and NCCL_* are not read on TPUs.
    # A chip that is missing is an error and not a run on CPUs, which would hang the other hosts.
    export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"
    ;;
  cpu) ;;
  *)
    echo "error: JOPSD_PLATFORM '$JOPSD_PLATFORM' is none of tpu, gpu, cpu" >&2
    exit 1
    ;;
esac
