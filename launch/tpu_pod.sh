#!/usr/bin/env bash
# Runs on all workers of a Cloud TPU slice: copies the repository to them, makes their environment, starts a process on each.
#
#   export TPU_NAME=my-slice ZONE=us-central1-a
#   bash launch/tpu_pod.sh --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet --config.data.data_dir=gs://BUCKET/tfds
#   MODE=compile bash launch/tpu_pod.sh --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet
#   bash launch/tpu_pod.sh --dry-run ...   prints the commands
#
# Needed:
#   TPU_NAME              name of the TPU, which is there and running; its workers need Python 3.11 or newer
#   ZONE                  where it is
#   --workdir=gs://...    a bucket that the workers may write (or an absolute path that all of them have mounted)
# May be set:
#   MODE                  train (the default) or compile
#   PROJECT               of the TPU; default: the one gcloud is set to
#   SELFEXPLAIN_PACKAGES  what is installed on the workers beside requirements.txt; default "jax[tpu] gcsfs"
#
# Other arguments go to selfexplain_jax.main. The configuration file must be one of the repository. Run it again after an
# interruption: it goes on from the last checkpoint. The run ends with this command's connection, so keep that (tmux).
set -euo pipefail
# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"
read_arguments "$@"

MODE="${MODE:-train}" SELFEXPLAIN_PACKAGES="${SELFEXPLAIN_PACKAGES:-jax[tpu] gcsfs}"
require TPU_NAME "the name of the TPU" ZONE "the zone of the TPU"
one_of MODE train compile
shared_workdir "all workers write there"
config="${config#"$root"/}"
if [[ ! -e "$root/${config%%:*}" ]]; then
  fail "--config=$config is no file of the repository $root, which is what the workers get."
fi
if [[ -z "$dry_run" ]] && ! command -v gcloud >/dev/null; then
  fail "there is no gcloud here: install the Google Cloud CLI, or use --dry-run."
fi

where=(--zone="$ZONE" --worker=all)
if [[ -n "${PROJECT:-}" ]]; then
  where+=(--project="$PROJECT")
fi
archive="${TMPDIR:-/tmp}/selfexplain_jax.$$.tar.gz"
trap 'rm -f "$archive"' EXIT
call tar -czf "$archive" -C "$root" --exclude=./.git --exclude='./.venv*' --exclude=./runs --exclude=__pycache__ .
call gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:selfexplain_jax.tar.gz" "${where[@]}"

main=(bash launch/local.sh --coordinator_address=auto --mode="$MODE" --config="$config" "${rest[@]}")
remote="mkdir -p selfexplain_jax && tar -xzf selfexplain_jax.tar.gz -C selfexplain_jax && cd selfexplain_jax &&"
remote+=" SELFEXPLAIN_PACKAGES=$(quoted "$SELFEXPLAIN_PACKAGES") $(quoted "${main[@]}")"
call gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --command="$remote"
