#!/usr/bin/env bash
# Upload the offline wandb run of a run folder: scripts/wandb_sync.sh RUN_FOLDER [options of wandb sync, such as --dry-run]
# All sessions of a run folder have one wandb id, and so become one run. What was uploaded before is uploaded again.
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }
[[ $# -ge 1 && $1 != -* ]] || fail "usage: scripts/wandb_sync.sh RUN_FOLDER [options of wandb sync]"
folder=$1
shift
[[ -d $folder ]] || fail "RUN_FOLDER must be a run folder, got $folder"
shopt -s nullglob
sessions=("$folder"/wandb/offline-run-*/)
[[ ${#sessions[@]} -gt 0 ]] || fail "$folder has no offline wandb run: only runs with logger=wandb logger.mode=offline have one"
wandb=$(dirname "$0")/../.venv/bin/wandb
[[ -x $wandb ]] || wandb=$(command -v wandb) || fail "wandb is not installed: source .venv/bin/activate"
exec "$wandb" sync --yes --include-synced "$@" -- "${sessions[@]}"
