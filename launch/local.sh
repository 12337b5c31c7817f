#!/usr/bin/env bash
# Trains, evaluates and draws on this machine, whatever it has. With no arguments: the synthetic shapes.
#
#   bash launch/local.sh                                       train and evaluate; all is written to runs/synthetic
#   bash launch/local.sh --config=configs/mnist.py             another experiment, in runs/mnist
#   bash launch/local.sh --config.train.steps=500 --workdir=runs/short
#   bash launch/local.sh --mode=explain --images=my/photos     explain photos with what was trained
#   bash launch/local.sh --dry-run ...                         prints the command
#   SELFEXPLAIN_PACKAGES='jax[cuda12]' bash launch/local.sh    on a GPU: installs the JAX that fits it, once
#
# Nothing is needed but Python 3.11 or newer. May be set:
#   MODE                  train (the default), compile, or another of --mode
#   SELFEXPLAIN_VENV      the Python environment; default: .venv in the repository, made when it is not there
#   SELFEXPLAIN_PACKAGES  what is installed into it beside requirements.txt
#
# Arguments go to selfexplain_jax.main (.venv/bin/python -m selfexplain_jax.main --help lists them). Paths are those of the
# folder from which this is called; a config that is not found there is looked for in the repository. Run it again after an
# interruption: it goes on from the last checkpoint.
set -euo pipefail
# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
read_arguments "$@"
if [[ -n "${MODE:-}" ]]; then
  one_of MODE train evaluate explain report compile benchmark
  rest=(--mode="$MODE" ${rest[@]+"${rest[@]}"})
fi
find_config
# shellcheck source=launch/setup.sh
source "$root/launch/setup.sh"

# On processors without AVX-512 the convolutions that XLA had before are the faster ones: with the memory settings of
# setup.sh a step of configs/synthetic.py takes 225 ms in place of 240 to 330 (two cores, jaxlib of constraints.txt).
# Where XLA_FLAGS are set, they are somebody's choice; where packages are, this may be an accelerator's machine.
if [[ -z "${XLA_FLAGS:-}${SELFEXPLAIN_PACKAGES:-}" && -r /proc/cpuinfo ]] && grep -q avx2 /proc/cpuinfo &&
  ! grep -q avx512f /proc/cpuinfo; then
  export XLA_FLAGS="--xla_cpu_experimental_ynn_fusion_type="
fi

# ${rest[@]+...}: an empty list counts as unset in the bash of macOS.
command=("$python" -m selfexplain_jax.main --config="$config" ${rest[@]+"${rest[@]}"})
if [[ -n "$dry_run" ]]; then
  call "${command[@]}"
  exit 0
fi
exec "${command[@]}"
