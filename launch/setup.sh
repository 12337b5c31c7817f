#!/usr/bin/env bash
# Sourced by the other scripts of this folder: makes the virtual environment once and keeps it in step with the
# requirements. Sets `root` (the repository) and `python` (the interpreter to use).
# SELFEXPLAIN_VENV: where the environment lies; default: .venv in the repository.
# SELFEXPLAIN_PACKAGES: what is installed beside the requirements, with spaces between: jax[cuda12], jax[tpu], gcsfs.
# A script that has read --dry-run (`dry_run`) gets the names and nothing is made or installed.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${SELFEXPLAIN_VENV:-$root/.venv}"
python="$venv/bin/python"

# Prints the first interpreter that is new enough.
find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed and none is on the PATH (looked for python3.11, python3.12, python3.13," \
    "python3, python). Install one and run this again." >&2
  return 1
}

# Usage: install REQUIREMENTS_FILE...; installs them with the tested pins, unless that was done before.
install() {
  local name="" arguments=() packages file checksum stamp
  for file in "$@"; do
    name+=".$(basename "$file" .txt)"
    arguments+=(-r "$file")
  done
  read -r -a packages <<<"${SELFEXPLAIN_PACKAGES:-}"
  arguments+=(${packages[@]+"${packages[@]}"})
  checksum="$({ cat "$@" "$root/launch/constraints.txt" && echo "${SELFEXPLAIN_PACKAGES:-}"; } | cksum)"
  stamp="$venv/.installed$name"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$checksum" ]]; then
    return
  fi
  echo "Installing what $(printf '%s ' "${@##*/}")asks for into $venv (once; some minutes without a word) ..." >&2
  if ! "$python" -m pip install --quiet --disable-pip-version-check --use-pep517 "${arguments[@]}" -c "$root/launch/constraints.txt"; then
    echo "error: pip could not install the packages (its message is above). launch/constraints.txt pins the versions" \
      "that were tested." >&2
    return 1
  fi
  printf '%s' "$checksum" >"$stamp"
}

if [[ -z "${dry_run:-}" && ! -x "$python" ]]; then
  interpreter="$(find_python)"
  echo "Making the virtual environment $venv with $interpreter ..." >&2
  if ! "$interpreter" -m venv "$venv"; then
    echo "error: $interpreter could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv." >&2
    exit 1
  fi
fi
if [[ -z "${dry_run:-}" ]]; then
  install "$root/requirements.txt"
fi

# The package is used where it lies, from whatever folder the script was called.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# glibc gives the memory of every step back to the system and asks for it again, page by page: some 30,000 page faults
# a step of configs/synthetic.py. These make it keep what it has. Other C libraries do not read them; what the caller has
# set stays.
export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-268435456}"
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
