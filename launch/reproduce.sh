#!/usr/bin/env bash
# Runs rows of docs/results.md again, and says which of them differ from the stored ones by more than the spread.
#
#   bash launch/reproduce.sh                       every row that two cores can run: 6.7 hours of training, and evaluations
#   bash launch/reproduce.sh synthetic texture     these rows
#   bash launch/reproduce.sh main                  those of the main table; or: ablation, photographs, other
#   bash launch/reproduce.sh --seeds=3,4 texture   with other seeds than the stored ones: more say more
#   bash launch/reproduce.sh --dry-run ...         prints the commands
#
#   --runs=DIR       where the runs go; default: runs/reproduce in the repository
#   --data_dir=DIR   where data sets are prepared; may be given again for another folder, the first that has a set is taken;
#                    default: $TFDS_DATA_DIR. Rows whose data are in none of them are left out, and said to be
#
# The rows are listed below; --dry-run prints what each runs. How far a number may lie from the stored one, and why:
# "Running the rows again" in docs/results.md.
#
# Run it again after an interruption: a row that is finished is not trained again, a row that is not goes on from its last
# checkpoint. The table is also in DIR/reproduced.md. Exit code: 0, 1 where a row differs, 2 for bad input.
set -euo pipefail
# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

# table, name, config, seeds: those of docs/results.json, as a test makes sure; data set that has to be prepared, or -.
rows=(
  "main synthetic configs/synthetic.py 0,1,2 -"
  "main texture configs/synthetic.py:texture 0 -"
  "main shape configs/synthetic.py:shape 0 -"
  "main confounded configs/synthetic.py:confounded 0 -"
  "main multi configs/synthetic.py:multi 0 -"
  "main canvas configs/mnist.py:canvas 0 mnist"
  "main mnist configs/mnist.py 0 mnist"
  "other classifier configs/synthetic.py:classifier 0 -"
  "ablation full configs/synthetic_ablation.py:full 0 -"
  "ablation no_evaluator configs/synthetic_ablation.py:no_evaluator 0 -"
  "ablation no_object configs/synthetic_ablation.py:no_object 0 -"
  "ablation no_background configs/synthetic_ablation.py:no_background 0 -"
  "ablation no_area configs/synthetic_ablation.py:no_area 0 -"
  "ablation no_affinity configs/synthetic_ablation.py:no_affinity 0 -"
  "ablation no_edges configs/synthetic_ablation.py:no_edges 0 -"
  "ablation no_local_contrast configs/synthetic_ablation.py:no_local_contrast 0 -"
  "ablation no_annealing configs/synthetic_ablation.py:no_annealing 0 -"
  "ablation zero_infill configs/synthetic_ablation.py:zero_infill 0 -"
  "ablation live_weights configs/synthetic_ablation.py:live_weights 0 -"
  "ablation hard_masks configs/synthetic_ablation.py:hard_masks 0 -"
  "ablation no_smoothness configs/synthetic_ablation.py:no_smoothness 0 -"
  "ablation no_blur configs/synthetic_ablation.py:no_blur 0 -"
  "ablation blobs_alone configs/synthetic_ablation.py:blobs_alone 0 -"
  "ablation ema_weights configs/synthetic_ablation.py:ema_weights 0 -"
  "ablation no_ranking configs/synthetic_ablation.py:no_ranking 0 -"
  "photographs animals configs/voc2012_animals.py 0,1,2 voc2012"
  "photographs animals_classifier configs/voc2012_animals.py:classifier 0 voc2012"
  "photographs coco_subset configs/coco2017_subset.py 0 coco2017"
  "photographs cifar10 configs/cifar10.py 0 cifar10"
  "photographs cifar10_classifier configs/cifar10.py:classifier 0 cifar10"
)

# Ends the script with one line; 1 would say that a row differs.
refuse() {
  echo "error: $*" >&2
  exit 2
}

runs="$root/runs/reproduce" data_dirs=() seeds="" asked=()
for argument in "$@"; do
  case "$argument" in
    -h | --help)
      print_help
      exit 0
      ;;
    --dry-run) dry_run=1 ;;
    --runs=?*) runs="${argument#*=}" ;;
    --data_dir=?*) data_dirs+=("${argument#*=}") ;;
    --seeds=*)
      seeds="${argument#*=}"
      if ! [[ "$seeds" =~ ^[0-9]+(,[0-9]+)*$ ]]; then
        refuse "$argument: seeds are whole numbers with commas between, such as --seeds=0,1,2."
      fi
      ;;
    -*) refuse "do not know $argument. A row is what its config says, so fields of a config cannot be overridden here; --help lists what can be given." ;;
    *) asked+=("$argument") ;;
  esac
done

if ((!${#data_dirs[@]})) && [[ -n "${TFDS_DATA_DIR:-}" ]]; then
  data_dirs=("$TFDS_DATA_DIR")
fi

# Prints the first folder in which that data set is prepared; fails where none has it.
folder_of() {
  local folder
  for folder in ${data_dirs[@]+"${data_dirs[@]}"}; do
    if [[ -d "$folder/$1" ]]; then
      echo "$folder"
      return 0
    fi
  done
  return 1
}

# Whether the row is asked for, by its name or by that of its table; without names all are.
is_asked() {
  local name
  if ((!${#asked[@]})); then
    return 0
  fi
  for name in "${asked[@]}"; do
    if [[ "$name" == "$1" || "$name" == "$2" ]]; then
      return 0
    fi
  done
  return 1
}

known=" main ablation photographs other "
for row in "${rows[@]}"; do
  read -r table name config row_seeds dataset <<<"$row"
  known+="$name "
done
for name in ${asked[@]+"${asked[@]}"}; do
  if [[ "$known" != *" $name "* ]]; then
    refuse "there is no row $name. Choose among:$known"
  fi
done

chosen=() names=()
for row in "${rows[@]}"; do
  read -r table name config row_seeds dataset <<<"$row"
  if ! is_asked "$table" "$name"; then
    continue
  fi
  names+=("$name")
  if [[ "$dataset" != - ]] && ! folder_of "$dataset" >/dev/null; then
    where="${data_dirs[*]-}"
    where="${where:-neither --data_dir nor \$TFDS_DATA_DIR is given}"
    if [[ " ${asked[*]-} " == *" $name "* ]]; then
      refuse "row $name needs $dataset, and there is no folder $dataset in it: $where. Prepare it:" \
        "python -m selfexplain_jax.data.prepare --dataset=$dataset --data_dir=DIR, then give --data_dir=DIR."
    fi
    echo "Row $name is left out: it needs $dataset, which is not prepared ($where); --help says how to name it." >&2
    continue
  fi
  chosen+=("$row")
done
if ((!${#chosen[@]})); then
  refuse "no row is left to run."
fi

# shellcheck source=launch/setup.sh
source "$root/launch/setup.sh"
for row in "${chosen[@]}"; do
  read -r table name config row_seeds dataset <<<"$row"
  IFS=, read -r -a numbers <<<"${seeds:-$row_seeds}"
  for seed in "${numbers[@]}"; do
    folder="$runs/${name}_seed$seed"
    command=(bash "$root/launch/local.sh" --config="$root/$config" --workdir="$folder" --config.seed="$seed")
    if [[ "$dataset" != - ]]; then
      command+=(--config.data.data_dir="$(folder_of "$dataset")")
    fi
    code=0
    if [[ -z "$dry_run" ]]; then
      "$python" -m selfexplain_jax.report.reproduce finished "$folder" "$name" "$seed" || code=$?
      if ((code == 0)); then
        echo "Row $name, seed $seed: finished before, in $folder." >&2
        continue
      elif ((code != 3)); then
        exit "$code"
      fi
      echo "Row $name, seed $seed: in $folder ..." >&2
    fi
    code=0
    call "${command[@]}" || code=$?
    if ((code)); then
      exit $((code == 1 ? 2 : code))
    fi
  done
done
call "$python" -m selfexplain_jax.report.reproduce compare "$runs" "${names[@]}"
