#!/usr/bin/env bash
# Submits a run to Slurm: a process for every GPU, on one node or on many; or a process for every node without GPUs.
#
#   export NODES=2 GPUS_PER_NODE=4
#   bash launch/slurm.sh --config=configs/coco2014.py --config.data.data_dir=DIR --workdir=runs/coco2014
#   MODE=compile bash launch/slurm.sh --config=configs/coco2014.py --workdir=runs/coco2014
#   bash launch/slurm.sh --dry-run ...     prints what would be submitted
#
# Needed:
#   NODES                 how many nodes
#   GPUS_PER_NODE         GPUs of each that are used; 0 on nodes without
#   --workdir=DIR         a folder that all nodes see, or a bucket
# May be set:
#   MODE                  train (the default) or compile
#   TIME                  limit of the job, as Slurm writes it; default 24:00:00
#   PARTITION, ACCOUNT    as the cluster names them; what it takes otherwise
#   CPUS_PER_PROCESS      default 8
#   SELFEXPLAIN_VENV      the Python environment, on a disk that all nodes see; made here if it is not there.
#                         Default: .venv in the repository
#   SELFEXPLAIN_PACKAGES  what is installed into it beside requirements.txt; default jax[cuda12] where GPUs are used; add
#                         gcsfs for gs://
#
# Other arguments go to selfexplain_jax.main; sbatch reads its own SBATCH_... variables. Two minutes before its limit, and
# where the cluster takes the nodes away, the job saves and ends: the same command goes on from there.
set -euo pipefail
# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
read_arguments "$@"

MODE="${MODE:-train}" TIME="${TIME:-24:00:00}" CPUS_PER_PROCESS="${CPUS_PER_PROCESS:-8}"
require NODES "how many nodes" GPUS_PER_NODE "how many GPUs of each node are used; 0 on nodes without"
whole_number NODES 1
whole_number GPUS_PER_NODE 0
whole_number CPUS_PER_PROCESS 1
one_of MODE train compile
if [[ -z "$(flag_value workdir)" ]]; then
  fail "--workdir is missing: name a folder that all nodes see, for instance --workdir=runs/NAME."
fi
find_config
if ((GPUS_PER_NODE)); then
  # Without it JAX would compute on the processors of these nodes, and say so in a warning alone.
  export SELFEXPLAIN_PACKAGES="${SELFEXPLAIN_PACKAGES:-jax[cuda12]}"
fi
# shellcheck source=launch/setup.sh
source "$root/launch/setup.sh"

options=(--nodes="$NODES" --cpus-per-task="$CPUS_PER_PROCESS" --time="$TIME" --job-name=selfexplain)
# SIGTERM two minutes before the limit; back into the queue when the nodes are taken away.
options+=(--signal=TERM@120 --requeue)
steps=(srun --kill-on-bad-exit=1 --cpus-per-task="$CPUS_PER_PROCESS")
if ((GPUS_PER_NODE)); then
  # JAX gives each process of a node the GPU of its number, so that every process must see all of them.
  options+=(--ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE")
  steps+=(--gpu-bind=none)
else
  options+=(--ntasks-per-node=1)
fi
if [[ -n "${PARTITION:-}" ]]; then
  options+=(--partition="$PARTITION")
fi
if [[ -n "${ACCOUNT:-}" ]]; then
  options+=(--account="$ACCOUNT")
fi
steps+=("$python" -m selfexplain_jax.main --coordinator_address=auto --mode="$MODE" --config="$config" "${rest[@]}")

# sbatch reads the job from its input: no second script, and nothing to quote twice. The variables of setup.sh go with it.
job="#!/usr/bin/env bash
set -euo pipefail
exec $(quoted "${steps[@]}")"
if [[ -n "$dry_run" ]]; then
  printf '%s <<"JOB"\n%s\nJOB\n' "$(quoted sbatch "${options[@]}")" "$job"
  exit 0
fi
if ! command -v sbatch >/dev/null; then
  fail "there is no sbatch here: run this on a login node of a Slurm cluster, or with --dry-run."
fi
sbatch "${options[@]}" <<<"$job"
