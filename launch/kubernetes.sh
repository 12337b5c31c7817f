#!/usr/bin/env bash
# Fills in launch/kubernetes.yaml and hands the job to Kubernetes: a JobSet with a process on every host of a TPU slice, or on
# every node with GPUs. The cluster needs the JobSet controller, and an image of launch/Dockerfile that it can pull.
#
#   export ACCELERATOR=tpu IMAGE=REGISTRY/selfexplain:tpu NODES=4 TPU_TYPE=tpu-v5-lite-podslice TPU_TOPOLOGY=4x4
#   bash launch/kubernetes.sh --config=configs/imagenet.py --config.data.data_dir=gs://BUCKET/tfds --workdir=gs://BUCKET/imagenet
#   export ACCELERATOR=gpu IMAGE=REGISTRY/selfexplain:gpu NODES=2 GPUS_PER_NODE=8
#   MODE=compile bash launch/kubernetes.sh --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet
#   bash launch/kubernetes.sh --dry-run ...    prints the command and what it would hand over
#
# Needed:
#   ACCELERATOR           tpu or gpu
#   IMAGE                 image of launch/Dockerfile
#   NODES                 hosts of the slice, or nodes
#   TPU_TYPE, TPU_TOPOLOGY    tpu: what GKE calls them, for instance tpu-v5-lite-podslice and 4x4
#   GPUS_PER_NODE         gpu: of each node
#   --workdir=gs://...    a bucket: launch/kubernetes.yaml mounts nothing that outlives a pod
# May be set:
#   MODE                  train (the default) or compile
#   JOB_NAME              default: selfexplain
#   CHIPS_PER_NODE        tpu: of each host; default 4
#   SERVICE_ACCOUNT       of the pods, which decides what they may read and write; default: default
#
# Other arguments go to selfexplain_jax.main. A pod that is lost restarts all of them, which go on from the last checkpoint.
# A job that has ended is taken away before the same name is used again: kubectl delete jobset JOB_NAME.
set -euo pipefail
# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
read_arguments "$@"

MODE="${MODE:-train}" JOB_NAME="${JOB_NAME:-selfexplain}" CHIPS_PER_NODE="${CHIPS_PER_NODE:-4}"
SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-default}"
require ACCELERATOR "tpu or gpu" IMAGE "an image of launch/Dockerfile" NODES "how many hosts or nodes"
one_of ACCELERATOR tpu gpu
one_of MODE train compile
if [[ "$ACCELERATOR" == tpu ]]; then
  require TPU_TYPE "GKE's name of the TPU, such as tpu-v5-lite-podslice" TPU_TOPOLOGY "that of the slice, such as 4x4"
  whole_number CHIPS_PER_NODE 1
else
  require GPUS_PER_NODE "how many GPUs each node has"
  whole_number GPUS_PER_NODE 1
fi
whole_number NODES 1
if ! [[ "$JOB_NAME" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
  fail "JOB_NAME=$JOB_NAME must be at most 40 small letters, digits and hyphens, beginning with a letter."
fi
if [[ "$(flag_value workdir)" != *://* ]]; then
  fail "--workdir=$(flag_value workdir): a pod's own folders go with it, so it must be a bucket, --workdir=gs://BUCKET/NAME."
fi
if [[ -z "$dry_run" ]] && ! command -v kubectl >/dev/null; then
  fail "there is no kubectl here; install it, or use --dry-run."
fi

# The arguments as a list that is JSON and so YAML.
ARGUMENTS=""
for argument in --mode="$MODE" --config="$config" "${rest[@]}"; do
  if [[ "$argument" == *[[:cntrl:]]* ]]; then
    fail "an argument holds a line break or a tab: $(quoted "$argument")."
  fi
  # Kubernetes would fill in $(NAME); $$ is a dollar to it.
  argument="${argument//\\/\\\\}"
  argument="${argument//\"/\\\"}"
  argument="${argument//\$/\$\$}"
  ARGUMENTS+="${ARGUMENTS:+, }\"$argument\""
done

# Usage: fill_in NAME...; puts the variables' values in the place of ${NAME} in `text`.
fill_in() {
  local name mark left filled
  for name in "$@"; do
    mark="\${$name}" left="$text" filled=""
    while [[ "$left" == *"$mark"* ]]; do
      filled+="${left%%"$mark"*}${!name}"
      left="${left#*"$mark"}"
    done
    text="$filled$left"
  done
}

# The first document is for TPUs, the second for GPUs.
text="$(<"$root/launch/kubernetes.yaml")"
if [[ "$ACCELERATOR" == tpu ]]; then
  text="${text%%$'\n---\n'*}"
  fill_in TPU_TYPE TPU_TOPOLOGY CHIPS_PER_NODE
else
  text="${text#*$'\n---\n'}"
  fill_in GPUS_PER_NODE
fi
# Last, because it may hold anything.
fill_in JOB_NAME IMAGE NODES SERVICE_ACCOUNT ARGUMENTS
if [[ -n "$dry_run" ]]; then
  printf 'kubectl apply -f - <<"YAML"\n%s\nYAML\n' "$text"
  exit 0
fi
kubectl apply -f - <<<"$text"
