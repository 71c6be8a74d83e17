#!/usr/bin/env bash
# Runs experiments of configs/experiment/ and makes their tables, figures and pages.
set -euo pipefail
experiments="table3_clean_l4 table5_depth table7_shift strength_sweep additive_ablation table11_pets matched_strength\
 late_stage_photos cifar10_scratch"
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
  local word
  printf '+ python'
  for word in "$@"; do
    # A command inside, which only --dry-run prints, stays one.
    if [[ $word == *'$('* ]]; then printf ' "%s"' "$word"; else printf ' %q' "$word"; fi
  done
  echo
  local script=$1; shift
  [[ -n $dry_run ]] || "${PYTHON:-python}" "$root/$script" "$@"
}

# Run scripts/choose_strength.py, which prints its choice; with --dry-run print this command itself.
choose() {
  if [[ -n $dry_run ]]; then echo "\$(python scripts/choose_strength.py $*)"; return; fi
  "${PYTHON:-python}" "$root/scripts/choose_strength.py" "$@"
}

# The chosen runs of matched_strength, which were evaluated on the 4 extra corruptions, are evaluated on the 15.
matched_strength() {
  local list
  list=$(choose "$runs/*")
  python_ evaluate.py "${common[@]}" corruptions=c15 records.logits=true "checkpoints=$list" "output=$runs-chosen"
  python_ report.py "runs=[$runs-chosen/*]" "output=$reports" table=mechanisms
}

# The strengths of late_stage_photos are chosen on the images of ROOT/tune under the 4 extra corruptions at severity 3, with two
# seeds. The chosen ones are trained with more seeds and evaluated on ROOT/val under the 15 at all severities. The digits have one
# split, and get fewer seeds and severity 3 alone.
late_stage_photos() {
  local list noises seeds=0,1,2 evaluate=(evaluate.py "${common[@]}" model.pretrained=false)
  [[ $scale == small ]] || seeds=0,1,2,3,4
  # Not those of later seeds, which are there when this command is given again.
  python_ "${evaluate[@]}" ${tune[@]+"${tune[@]}"} corruptions=extra4 "corruptions.severities=[3]" \
    "checkpoints=[$runs/*-s0-*,$runs/*-s1-*]" "output=$runs-tune"
  noises=$(choose "$runs-tune/*" --best --variance 0.3 --noise)
  python_ train.py -m "${common[@]}" ${tune[@]+"${tune[@]}"} "seed=$seeds" "noise=$noises"
  list=$(choose "$runs-tune/*" --best --variance 0.3 --among "$runs/*")
  python_ "${evaluate[@]}" corruptions=c15 records.logits=true "checkpoints=$list" "output=$runs-chosen"
  list=$(choose "$runs-tune/*" --best --among "$runs-chosen/*")
  python_ report.py "runs=$list" "output=$reports/own_best" table=mechanisms
  list=$(choose "$runs-tune/*" --variance 0.3 --among "$runs-chosen/*")
  python_ report.py "runs=$list" "output=$reports/matched_variance" table=mechanisms
}

# The networks of cifar10_scratch are trained without corruptions and evaluated on the 15 in one pass.
cifar10_scratch() {
  python_ evaluate.py "${common[@]}" corruptions=c15 "checkpoints=[$runs/*]" "output=$runs-evaluated"
  python_ report.py "runs=[$runs-evaluated/*]" "output=$reports" table=mechanisms
}

for name in "${chosen[@]}"; do
  runs=runs/$name/$scale reports=results/$name/$scale tune=()
  common=("experiment=$name" "scale=$scale" ${overrides[@]+"${overrides[@]}"})
  [[ $name != late_stage_photos || $scale == small ]] || tune=(data.split=tune)
  python_ train.py -m "${common[@]}" ${tune[@]+"${tune[@]}"}
  case $name in
    matched_strength | late_stage_photos | cifar10_scratch) "$name"; continue ;;
    table3_clean_l4) table=clean ;;
    table5_depth) table=depth ;;
    table7_shift) table=shift ;;
    strength_sweep) table=strength ;;
    table11_pets) table=finegrained ;;
    *) table=mechanisms ;;
  esac
  python_ report.py "runs=[$runs/*]" "output=$reports" "table=$table"
done
