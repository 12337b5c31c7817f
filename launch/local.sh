#!/usr/bin/env bash
# Trains, evaluates and draws on this machine, whatever it has. With no arguments: the synthetic shapes.
#
#   bash launch/local.sh                                       train and evaluate; all is written to runs/synthetic
#   bash launch/local.sh --config=configs/mnist.py             another experiment, in runs/mnist
#   bash launch/local.sh --config.train.steps=500 --workdir=runs/short
#   bash launch/local.sh --mode=explain --images=my/photos     explain photos with what was trained
#
# Arguments go to selfexplain_jax.main. Paths are those of the folder from which this is called; a config that is not
# found there is looked for in the repository. Run it again after an interruption: it goes on from the last checkpoint.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

config=configs/synthetic.py
rest=()
while (($#)); do
  case "$1" in
    --config=*) config="${1#*=}" ;;
    --config)
      config="${2:?"error: --config needs a value: --config=configs/NAME.py"}"
      shift
      ;;
    *) rest+=("$1") ;;
  esac
  shift
done
# A config is PATH or PATH:VARIANT.
if [[ ! -e "${config%%:*}" && -e "$root/${config%%:*}" ]]; then
  config="$root/$config"
fi

# On processors without AVX-512 the convolutions that XLA had before are the faster ones: with the memory settings of
# setup.sh a step of configs/synthetic.py takes 225 ms in place of 240 to 330 (two cores, jaxlib of constraints.txt).
# Where XLA_FLAGS are set, they are somebody's choice.
if [[ -z "${XLA_FLAGS:-}" && -r /proc/cpuinfo ]] && grep -q avx2 /proc/cpuinfo && ! grep -q avx512f /proc/cpuinfo; then
  export XLA_FLAGS="--xla_cpu_experimental_ynn_fusion_type="
fi

# ${rest[@]+...}: an empty list counts as unset in the bash of macOS.
exec "$python" -m selfexplain_jax.main --config="$config" ${rest[@]+"${rest[@]}"}
