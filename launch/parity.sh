#!/usr/bin/env bash
# Runs the published implementations on the networks of tests/parity and writes the golden files that the tests there
# hold us to. They live in an environment of their own, which is made once; a few minutes, and about 1 GB.
#
#   bash launch/parity.sh                 every generator
#   bash launch/parity.sh cam             tests/parity/generate_cam.py alone
#   bash launch/parity.sh install         the environment alone, for --mode=benchmark
#
# SELFEXPLAIN_PARITY_VENV: where that environment lies; default: .venv-parity in the repository.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${SELFEXPLAIN_PARITY_VENV:-$root/.venv-parity}"
folder="$root/tests/parity"

generators=("$folder"/generate_*.py)
if [[ "$*" == install ]]; then
  generators=()
elif (($#)); then
  generators=("${@/#/$folder/generate_}")
  generators=("${generators[@]/%/.py}")
fi
for generator in "${generators[@]}"; do
  if [[ ! -e "$generator" ]]; then
    echo "error: there is no $generator; the generators are $(cd "$folder" && echo generate_*.py)." >&2
    exit 1
  fi
done

if [[ ! -x "$venv/bin/python" ]]; then
  echo "Making the virtual environment $venv ..." >&2
  "${PYTHON:-python3}" -m venv "$venv"
fi
checksum="$(cat "$folder"/requirements*.txt | cksum)"
if [[ ! -f "$venv/.installed" || "$(cat "$venv/.installed")" != "$checksum" ]]; then
  echo "Installing what tests/parity/requirements.txt asks for into $venv (once; a few minutes) ..." >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$folder/requirements.txt"
  # What pins dependencies that are too old for the rest comes without them.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$folder/requirements-alone.txt"
  printf '%s' "$checksum" >"$venv/.installed"
fi

for generator in "${generators[@]}"; do
  echo "${generator##*/}" >&2
  "$venv/bin/python" -W ignore "$generator"
done
