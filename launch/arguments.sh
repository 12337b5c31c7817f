#!/usr/bin/env bash
# Sourced by the scripts of this folder that start a run: their header is their --help, their variables are checked before
# anything is called, and with --dry-run the commands are printed and not called. Sets `root` (the repository).

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry_run=""
config=configs/synthetic.py
rest=()

# Ends the script with one line.
fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints the comment at the top of the script that was called.
print_help() {
  local line
  while IFS= read -r line; do
    if [[ "$line" == "#!"* ]]; then
      continue
    elif [[ "$line" != "#"* ]]; then
      return
    fi
    line="${line#\#}"
    printf '%s\n' "${line# }"
  done <"$0"
}

# Usage: read_arguments "$@". Sets `config`, `dry_run` and `rest` (all other arguments); --help ends the script.
read_arguments() {
  while (($#)); do
    case "$1" in
      -h | --help)
        print_help
        exit 0
        ;;
      --dry-run) dry_run=1 ;;
      --config=*) config="${1#*=}" ;;
      --config)
        config="${2:?"error: --config needs a value: --config=configs/NAME.py"}"
        shift
        ;;
      *) rest+=("$1") ;;
    esac
    shift
  done
}

# Sets `config` to the one in the repository where there is none below the present folder. A config is PATH or PATH:VARIANT.
find_config() {
  if [[ ! -e "${config%%:*}" && -e "$root/${config%%:*}" ]]; then
    config="$root/$config"
  fi
}

# Usage: flag_value NAME; prints the value of the last --NAME=VALUE among `rest`, nothing without one.
flag_value() {
  local argument value=""
  for argument in ${rest[@]+"${rest[@]}"}; do
    if [[ "$argument" == "--$1="* ]]; then
      value="${argument#*=}"
    fi
  done
  printf '%s' "$value"
}

# Usage: shared_workdir WHY; ends the script where --workdir is a folder of one machine alone.
shared_workdir() {
  local workdir
  workdir="$(flag_value workdir)"
  if [[ "$workdir" != *://* && "$workdir" != /* ]]; then
    fail "--workdir=$workdir: $1, so it must be a bucket, --workdir=gs://BUCKET/NAME (or an absolute path that all of them" \
      "have mounted)."
  fi
}

# Usage: require NAME MEANING [NAME MEANING]...; names every variable that is unset or empty and ends the script.
require() {
  local missing=""
  while (($#)); do
    if [[ -z "${!1:-}" ]]; then
      echo "error: the variable $1 is not set: $2." >&2
      missing=1
    fi
    shift 2
  done
  if [[ -n "$missing" ]]; then
    echo "Set it before the command: NAME=value bash launch/${0##*/} ...; --help has an example." >&2
    exit 1
  fi
}

# Usage: one_of NAME VALUE...; ends the script where the variable has none of the values.
one_of() {
  local name="$1" value
  shift
  for value in "$@"; do
    if [[ "${!name}" == "$value" ]]; then
      return
    fi
  done
  fail "$name=${!name} is none of: $*."
}

# Usage: whole_number NAME LEAST; ends the script where the variable is no whole number of at least that.
whole_number() {
  if ! [[ "${!1}" =~ ^(0|[1-9][0-9]*)$ ]] || ((${!1} < $2)); then
    fail "$1=${!1} must be a whole number of at least $2."
  fi
}

# Usage: quoted WORD...; prints the words so that a shell reads them as they are.
quoted() {
  local line
  line="$(printf '%q ' "$@")"
  printf '%s' "${line% }"
}

# Usage: call COMMAND [ARGUMENT]...; calls it, or prints it where this is a dry run.
call() {
  if [[ -n "$dry_run" ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}
