#!/usr/bin/env bash
# Builds the documents of docs/ and the API reference into a folder of pages that open without a server. A warning, a
# broken link among them, is an error.
#
#   bash launch/docs.sh                   into runs/docs; open runs/docs/index.html
#   bash launch/docs.sh FOLDER            into that folder, which is emptied first
#
# The tools live in an environment of their own, which is made once. SELFEXPLAIN_DOCS_VENV: where it lies; default:
# .venv-docs in the repository.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${SELFEXPLAIN_DOCS_VENV:-$root/.venv-docs}"
mkdir -p "${1:-$root/runs/docs}"
output="$(cd "${1:-$root/runs/docs}" && pwd)"
# The folder is emptied: what is no built site stays.
if [[ -n "$(ls -A "$output")" && ! -f "$output/objects.inv" ]]; then
  echo "error: $output is not empty and holds no built documents: name another folder." >&2
  exit 1
fi

if [[ ! -x "$venv/bin/python" ]]; then
  echo "Making the virtual environment $venv ..." >&2
  "${PYTHON:-python3}" -m venv "$venv"
fi
checksum="$(cksum <"$root/requirements-docs.txt")"
if [[ ! -f "$venv/.installed" || "$(cat "$venv/.installed")" != "$checksum" ]]; then
  echo "Installing what requirements-docs.txt asks for into $venv (once) ..." >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-docs.txt"
  printf '%s' "$checksum" >"$venv/.installed"
fi

# Two notices of the tools about their own future.
export NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true
"$venv/bin/python" -m mkdocs build --quiet --strict --clean --config-file "$root/mkdocs.yml" --site-dir "$output"
echo "$output/index.html"
