#!/usr/bin/env bash
# Runs rows of docs/results.md and docs/scaling.md again, and says which of them differ from the stored ones by more than
# the spread.
#
#   bash launch/reproduce.sh                       every row that two cores can run: 8.2 hours of training, 6.9 of
#                                                  evaluation, some 3 of benchmarks
#   bash launch/reproduce.sh synthetic texture     these rows
#   bash launch/reproduce.sh main                  those of the main table; or: ablation, photographs, other, comparisons, benchmarks
#   bash launch/reproduce.sh --seeds=3,4 texture   with other seeds than the stored ones: more say more
#   bash launch/reproduce.sh --dry-run ...         prints the commands
#
#   --runs=DIR       where the runs go; default: runs/reproduce in the repository
#   --data_dir=DIR   where data sets are prepared; may be given again for another folder, the first that has a set is taken;
#                    default: $TFDS_DATA_DIR. Rows whose data are in none of them are left out, and said to be
#   --photos=DIR     sixteen photographs or more, for benchmarks of methods; default: $SELFEXPLAIN_DATA/photos
#   SELFEXPLAIN_PARITY_VENV: the environment of the published implementations, for benchmarks beside them; default:
#                    .venv-parity in the repository; `bash launch/parity.sh install` makes it
#
# A comparison of methods takes seed 0 of the rows whose models it compares, and the Explainer the classifier of its own
# seed; these are trained before.
#
# The rows are listed below; --dry-run prints what each runs. How far a number may lie from the stored one, and why:
# "Running the rows again" in docs/results.md.
#
# Run it again after an interruption: a row that is finished is not trained again, a row that is not goes on from its last
# checkpoint. The tables are also in DIR/reproduced.md, DIR/reproduced_comparisons.md and DIR/reproduced_benchmarks.md.
# Exit code: 0, 1 where a row differs, 2 for bad input.
set -euo pipefail
# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

# table, name, config, seeds: those of docs/results.json, as a test makes sure; data set that has to be prepared, or -;
# and, where a field of the config takes the folder of another row's run, FIELD=ROW.
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
  "other random_labels configs/synthetic.py:random_label_classifier 0 -"
  "other canvas_classifier configs/mnist.py:canvas_classifier 0 mnist"
  "other explainer configs/synthetic.py:explainer 0 - explainer.classifier=classifier"
  "other multi_classifier configs/synthetic.py:multi_classifier 0 -"
  "other confounded_classifier configs/synthetic.py:confounded_classifier 0 -"
  "photographs coco_subset_classifier configs/coco2017_subset.py:classifier 0 coco2017"
  "other vit_classifier configs/synthetic.py:vit_classifier 0 -"
)
# name, config, its models as MODEL=ROW, data set or -, then FIELD=VALUE of the config: those of docs/comparisons.json.
comparisons=(
  "methods_synthetic configs/compare_synthetic.py:sanity self_explainer=synthetic,classifier=classifier,random_label_classifier=random_labels -"
  "methods_animals configs/compare_voc2012_animals.py:localisation self_explainer=animals,classifier=animals_classifier voc2012 evaluation.max_examples=100"
  "methods_mnist configs/compare_mnist.py self_explainer=canvas,classifier=canvas_classifier mnist comparison.leave_out=('extremal_perturbation',)"
  "methods_explainer configs/compare_synthetic.py:explainer self_explainer=synthetic,classifier=classifier,explainer=explainer - evaluation.max_examples=100 comparison.leave_out=('extremal_perturbation',)"
  "methods_extremal configs/compare_synthetic.py:explainer self_explainer=synthetic,classifier=classifier,explainer=explainer - evaluation.max_examples=20 comparison.leave_out=('rise','smooth_grad','integrated_gradients','gradient','gradient_x_input','guided_backpropagation','grad_cam_plus_plus')"
  "methods_multi configs/compare_synthetic.py:multi self_explainer=multi,classifier=multi_classifier - comparison.leave_out=('extremal_perturbation',)"
  "methods_confounded configs/compare_synthetic.py:confounded self_explainer=confounded,classifier=confounded_classifier - comparison.leave_out=('extremal_perturbation',)"
  "methods_cifar10 configs/compare_cifar10.py self_explainer=cifar10,classifier=cifar10_classifier cifar10 comparison.leave_out=('extremal_perturbation',)"
  "methods_coco configs/compare_coco2017.py:localisation self_explainer=coco_subset,classifier=coco_subset_classifier coco2017"
  "methods_classes configs/compare_synthetic.py:classes self_explainer=multi,classifier=multi_classifier -"
  "methods_vit configs/compare_synthetic.py:vit self_explainer=synthetic,classifier=vit_classifier -"
)
# name, config, --what of --mode=benchmark or "compile" for --mode=compile, what it needs of photos and peers (the
# published implementations) or -, then FIELD=VALUE of the config: those of docs/benchmarks.json.
benchmarks=(
  "pipeline configs/synthetic.py pipeline -"
  "train_step configs/synthetic.py train -"
  "explain_step configs/synthetic.py explain -"
  "backbone configs/imagenet.py:classifier backbone peers train.batch_size=8 model.frozen_norm=False benchmark.repetitions=7 benchmark.steps=2"
  "class_activation configs/imagenet.py:classifier attribution photos,peers benchmark.rows=('grad_cam','grad_cam_plus_plus','self_explainer') benchmark.repetitions=7"
  "score_cam configs/imagenet.py:classifier attribution photos,peers benchmark.rows=('score_cam',) benchmark.repetitions=7"
  "rise configs/imagenet.py:classifier attribution photos,peers benchmark.rows=('rise',)"
  "extremal_perturbation configs/imagenet.py:classifier attribution photos,peers benchmark.rows=('extremal_perturbation',) benchmark.extremal_steps=10 benchmark.operations=False"
  "faithfulness configs/imagenet.py:classifier metrics photos,peers"
  "memory configs/imagenet.py:classifier memory photos"
  "less_work configs/imagenet.py:classifier curves photos"
  "step_deeplab configs/predecessor.py:deeplab train peers"
  "step_unet configs/predecessor.py train peers train.batch_size=32 benchmark.repetitions=7 benchmark.steps=10"
  "time_to_masks configs/synthetic.py time_to_masks peers"
  "compile_20_classes configs/imagenet.py compile - train.batch_size=32 data.options.classes=('n01440764','n01443537','n01484850','n01491361','n01494475','n01496331','n01498041','n01514668','n01514859','n01518878','n01530575','n01531178','n01532829','n01534433','n01537544','n01558993','n01560419','n01580077','n01582220','n01592084')"
  "compile_1000_classes configs/imagenet.py compile - train.batch_size=32"
  "compile_1000_classes_bfloat16 configs/imagenet.py compile - train.batch_size=32 model.compute_dtype=bfloat16"
)

# Ends the script with one line; 1 would say that a row differs.
refuse() {
  echo "error: $*" >&2
  exit 2
}

runs="$root/runs/reproduce" data_dirs=() seeds="" asked=() photos="${SELFEXPLAIN_DATA:+$SELFEXPLAIN_DATA/photos}"
peers="${SELFEXPLAIN_PARITY_VENV:-$root/.venv-parity}/bin/python"
for argument in "$@"; do
  case "$argument" in
    -h | --help)
      print_help
      exit 0
      ;;
    --dry-run) dry_run=1 ;;
    --runs=?*) runs="${argument#*=}" ;;
    --data_dir=?*) data_dirs+=("${argument#*=}") ;;
    --photos=?*) photos="${argument#*=}" ;;
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

known=" main ablation photographs other comparisons benchmarks "
for row in "${rows[@]}"; do
  read -r table name _ <<<"$row"
  known+="$name "
done
for row in ${comparisons[@]+"${comparisons[@]}"} ${benchmarks[@]+"${benchmarks[@]}"}; do
  known+="${row%% *} "
done
for name in ${asked[@]+"${asked[@]}"}; do
  if [[ "$known" != *" $name "* ]]; then
    refuse "there is no row $name. Choose among:$known"
  fi
done

# Whether the data set of a row is prepared; where it is not, says that the row is left out, or ends the script if it
# was asked for by name.
has_data() {
  local name="$1" dataset="$2" where
  if [[ "$dataset" == - ]] || folder_of "$dataset" >/dev/null; then
    return 0
  fi
  where="${data_dirs[*]-}"
  where="${where:-neither --data_dir nor \$TFDS_DATA_DIR is given}"
  if [[ " ${asked[*]-} " == *" $name "* ]]; then
    refuse "row $name needs $dataset, and there is no folder $dataset in it: $where. Prepare it:" \
      "python -m selfexplain_jax.data.prepare --dataset=$dataset --data_dir=DIR, then give --data_dir=DIR."
  fi
  echo "Row $name is left out: it needs $dataset, which is not prepared ($where); --help says how to name it." >&2
  return 1
}

# Whether what a benchmark needs is there, photos and peers; says what has_data says where it is not.
has_needs() {
  local name="$1" what=""
  if [[ ",$2," == *,photos,* && ! -d "$photos" ]]; then
    what="photographs, and there is no folder ${photos:-of them, as neither --photos nor \$SELFEXPLAIN_DATA is given}"
  elif [[ ",$2," == *,peers,* && ! -x "$peers" ]]; then
    what="the published implementations, and there is no $peers (bash launch/parity.sh install)"
  else
    return 0
  fi
  if [[ " ${asked[*]-} " == *" $name "* ]]; then
    refuse "row $name needs $what."
  fi
  echo "Row $name is left out: it needs $what." >&2
  return 1
}

chosen=() names=()
for row in "${rows[@]}"; do
  read -r table name config row_seeds dataset _ <<<"$row"
  if is_asked "$table" "$name"; then
    names+=("$name")
    if has_data "$name" "$dataset"; then
      chosen+=("$row")
    fi
  fi
done
# pick TABLE ROW...: leaves in picked_names those of the rows that are asked for, by the table's name or their own, and in
# picked the rows themselves whose needs, the fourth field, are there.
pick() {
  local table="$1" row name needs
  shift
  picked=() picked_names=()
  for row in "$@"; do
    read -r name _ _ needs _ <<<"$row"
    if is_asked "$table" "$name"; then
      picked_names+=("$name")
      if [[ "$table" == benchmarks ]]; then
        has_needs "$name" "$needs" || continue
      else
        has_data "$name" "$needs" || continue
      fi
      picked+=("$row")
    fi
  done
}
pick comparisons ${comparisons[@]+"${comparisons[@]}"}
chosen_comparisons=(${picked[@]+"${picked[@]}"}) comparison_names=(${picked_names[@]+"${picked_names[@]}"})
pick benchmarks ${benchmarks[@]+"${benchmarks[@]}"}
chosen_benchmarks=(${picked[@]+"${picked[@]}"}) benchmark_names=(${picked_names[@]+"${picked_names[@]}"})
if ((!${#chosen[@]} && !${#chosen_comparisons[@]} && !${#chosen_benchmarks[@]})); then
  refuse "no row is left to run."
fi

# shellcheck source=launch/setup.sh
source "$root/launch/setup.sh"

# run_unless_finished WHAT FOLDER DATASET CHECK... -- ARGUMENTS...: runs launch/local.sh, behind what is in `environment`,
# unless the check, a command of Python, finds it finished; what fails ends the script.
environment=()
run_unless_finished() {
  local what="$1" folder="$2" dataset="$3" check=() code=0
  shift 3
  while [[ "$1" != -- ]]; do
    check+=("$1")
    shift
  done
  shift
  local command=(${environment[@]+"${environment[@]}"} bash "$root/launch/local.sh" "$1" --workdir="$folder" "${@:2}")
  if [[ "$dataset" != - ]]; then
    command+=(--config.data.data_dir="$(folder_of "$dataset")")
  fi
  if [[ -z "$dry_run" ]]; then
    "$python" -m "${check[@]}" || code=$?
    if ((code == 0)); then
      echo "$what: finished before, in $folder." >&2
      return 0
    elif ((code != 3)); then
      exit "$code"
    fi
    echo "$what: in $folder ..." >&2
  fi
  code=0
  call "${command[@]}" || code=$?
  if ((code)); then
    exit $((code == 1 ? 2 : code))
  fi
}

# Prints the row of that name.
row_named() {
  local row table name
  for row in "${rows[@]}"; do
    read -r table name _ <<<"$row"
    if [[ "$name" == "$1" ]]; then
      echo "$row"
    fi
  done
}

# train_row ROW SEED: trains it, and before it the row whose run it takes.
train_row() {
  local table name config row_seeds dataset taken folder arguments
  read -r table name config row_seeds dataset taken <<<"$1"
  folder="$runs/${name}_seed$2"
  arguments=(--config="$root/$config" --config.seed="$2")
  if [[ -n "$taken" ]]; then
    train_row "$(row_named "${taken#*=}")" "$2"
    arguments+=("--config.${taken%%=*}=$runs/${taken#*=}_seed$2")
  fi
  run_unless_finished "Row $name, seed $2" "$folder" "$dataset" \
    selfexplain_jax.report.reproduce finished "$folder" "$name" "$2" -- "${arguments[@]}"
}

for row in ${chosen[@]+"${chosen[@]}"}; do
  read -r table name config row_seeds _ <<<"$row"
  IFS=, read -r -a numbers <<<"${seeds:-$row_seeds}"
  for seed in "${numbers[@]}"; do
    train_row "$row" "$seed"
  done
done
for comparison in ${chosen_comparisons[@]+"${chosen_comparisons[@]}"}; do
  read -r name config models dataset overrides <<<"$comparison"
  arguments=(--mode=evaluate --config="$root/$config")
  IFS=, read -r -a pairs <<<"$models"
  for pair in "${pairs[@]}"; do
    train_row "$(row_named "${pair#*=}")" 0
    arguments+=("--config.comparison.models.${pair%%=*}=$runs/${pair#*=}_seed0")
  done
  for override in $overrides; do
    arguments+=("--config.$override")
  done
  run_unless_finished "Comparison $name" "$runs/$name" "$dataset" \
    selfexplain_jax.report.reproduce_comparisons finished "$runs/$name" "$name" -- "${arguments[@]}"
done
# A program from JAX's cache takes no time to compile, and does not tell its memory as one that was just compiled does.
if ((${#chosen_benchmarks[@]})); then
  export JAX_ENABLE_COMPILATION_CACHE=false
fi
for benchmark in ${chosen_benchmarks[@]+"${chosen_benchmarks[@]}"}; do
  read -r name config what needs overrides <<<"$benchmark"
  arguments=(--config="$root/$config" --mode=benchmark --what="$what" --json="$runs/$name/benchmark.json")
  environment=()
  if [[ "$what" == compile ]]; then
    arguments=(--config="$root/$config" --mode=compile)
    # As XLA compiles unless told otherwise: an empty file of flags keeps local.sh from its own for some processors.
    environment=(env "XLA_FLAGS=${XLA_FLAGS:-/dev/null}")
  fi
  if [[ ",$needs," == *,photos,* ]]; then
    arguments+=(--images="$photos")
  fi
  if [[ ",$needs," == *,peers,* ]]; then
    arguments+=(--peers="$peers")
  fi
  if [[ "$what" == time_to_masks ]]; then
    arguments+=(--config.benchmark.peer_config="$root/configs/predecessor.py")
  fi
  for override in $overrides; do
    arguments+=("--config.$override")
  done
  run_unless_finished "Benchmark $name" "$runs/$name" - \
    selfexplain_jax.report.reproduce_benchmarks finished "$runs/$name" "$name" -- "${arguments[@]}"
done

# Each compares as far as nothing was wrong before; a difference of any is the exit code.
differs=0
compare() {
  local code=0
  if (($# > 1 && differs < 2)); then
    call "$python" -m "selfexplain_jax.report.$1" compare "$runs" "${@:2}" || code=$?
    differs=$((code > differs ? code : differs))
  fi
}
compare reproduce ${names[@]+"${names[@]}"}
compare reproduce_comparisons ${comparison_names[@]+"${comparison_names[@]}"}
compare reproduce_benchmarks ${benchmark_names[@]+"${benchmark_names[@]}"}
exit "$differs"
