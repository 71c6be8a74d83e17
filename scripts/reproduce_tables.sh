#!/usr/bin/env bash
# Runs experiments of configs/experiment/ and makes their tables, figures and pages.
set -euo pipefail
experiments="table3_clean_l4 table5_depth table7_shift strength_sweep additive_ablation table11_pets matched_strength"
usage="usage: scripts/reproduce_tables.sh [--scale full|small] [--dry-run] [EXPERIMENT ...] [FIELD=VALUE ...]

Experiments (all, if none is named): $experiments
  --scale small   the embedded digits: minutes on two CPU cores for each experiment; the default, full, is for GPUs
  --dry-run       print the commands and do nothing
FIELD=VALUE is given to every train.py and evaluate.py, such as data.root=/data/imagenet or hydra/launcher=slurm.
Runs go to runs/EXPERIMENT/SCALE/, reports to results/EXPERIMENT/SCALE/. The same command continues what was stopped."
fail() { echo "error: $1" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)

scale=full
dry_run=
chosen=()
overrides=()
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) echo "$usage"; exit 0 ;;
    --scale) [[ $# -gt 1 ]] || fail "--scale must be full or small"; scale=$2; shift ;;
    --dry-run) dry_run=1 ;;
    -*) fail "unknown option $1: see --help" ;;
    *=*) overrides+=("$1") ;;
    *) [[ " $experiments " == *" $1 "* ]] || fail "unknown experiment '$1': choose some of $experiments"; chosen+=("$1") ;;
  esac
  shift
done
[[ $scale == full || $scale == small ]] || fail "--scale must be full or small, got '$scale'"
[[ ${#chosen[@]} -gt 0 ]] || read -ra chosen <<<"$experiments"

# Print a command of this repository, and run it unless --dry-run was given.
python_() {
  printf '+ python'; printf ' %q' "$@"; echo
  local script=$1; shift
  [[ -n $dry_run ]] || "${PYTHON:-python}" "$root/$script" "$@"
}

for name in "${chosen[@]}"; do
  case $name in
    table3_clean_l4) table=clean ;;
    table5_depth) table=depth ;;
    table7_shift) table=shift ;;
    strength_sweep) table=strength ;;
    table11_pets) table=finegrained ;;
    *) table=mechanisms ;;
  esac
  runs=runs/$name/$scale
  python_ train.py -m "experiment=$name" "scale=$scale" ${overrides[@]+"${overrides[@]}"}
  if [[ $name == matched_strength ]]; then  # the strengths are tuned on the 4 extra corruptions, and reported on the 15
    list="[RUNS CHOSEN BY scripts/choose_strength.py $runs/*]"
    [[ -n $dry_run ]] || list=$("${PYTHON:-python}" "$root/scripts/choose_strength.py" "$runs"/*)
    python_ evaluate.py "experiment=$name" "scale=$scale" corruptions=c15 records.logits=true \
      ${overrides[@]+"${overrides[@]}"} "checkpoints=$list" "output=$runs-chosen"
    runs+=-chosen
  fi
  python_ report.py "runs=[$runs/*]" "output=results/$name/$scale" "table=$table"
done
