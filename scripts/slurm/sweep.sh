#!/usr/bin/env bash
# All combinations of some choices as one SLURM job array, without submitit; returns at once:
#   scripts/slurm/sweep.sh --partition=gpu --gpus-per-node=1 -- noise=none,gch seed=0,1,2 data=imagenet data.root=/data/imagenet
# Options of sbatch stand before the --. A comma separates choices, except inside brackets, braces or quotes.
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }
usage="usage: scripts/slurm/sweep.sh [options of sbatch --] NAME=CHOICE[,CHOICE] ..."

# Split $1 at its top-level commas into the array `choices`.
split() {
  local text=$1 depth=0 quote="" character i
  choices=("")
  for ((i = 0; i < ${#text}; i++)); do
    character=${text:i:1}
    if [[ -n $quote ]]; then
      [[ $character == "$quote" ]] && quote=""
    elif [[ $character == [\'\"] ]]; then
      quote=$character
    elif [[ $character == ['[{('] ]]; then
      depth=$((depth + 1))
    elif [[ $character == ['])}'] ]]; then
      depth=$((depth - 1))
    elif [[ $character == , && $depth -eq 0 ]]; then
      choices+=("")
      continue
    fi
    choices[-1]+=$character
  done
  [[ $depth -eq 0 && -z $quote ]] || fail "brackets and quotes must be closed, got $text"
}

options=()
for argument in "$@"; do
  if [[ $argument == -- ]]; then
    while [[ $1 != -- ]]; do
      options+=("$1")
      shift
    done
    shift
    break
  fi
done
[[ $# -gt 0 ]] || fail "$usage"
lines=("")
seen=" "
for argument in "$@"; do
  [[ $argument =~ ^[+~]?[A-Za-z_][A-Za-z0-9_./@]*=. ]] || fail "an argument must be NAME=CHOICE[,CHOICE], got $argument; $usage"
  name=${argument%%=*}
  [[ $seen != *" $name "* ]] || fail "$name must be given once"
  seen+="$name "
  split "${argument#*=}"
  [[ $name != output || ${#choices[@]} -eq 1 ]] || fail "output must be one folder; without it each job has its own"
  combined=()
  for line in "${lines[@]}"; do
    for choice in "${choices[@]}"; do
      [[ -n $choice ]] || fail "a choice must not be empty, got $argument"
      combined+=("$line$(printf '%q' "$name=$choice") ")
    done
  done
  lines=("${combined[@]}")
  [[ ${#lines[@]} -le 1000 ]] || fail "a sweep must have at most 1000 jobs: split it"
done
[[ $seen != *" output "* || ${#lines[@]} -eq 1 ]] || fail "output must not be given in a sweep: its jobs would share one folder"
command -v sbatch >/dev/null || fail "sbatch is not installed: call this on a login node of the cluster"
cd "$(dirname "$0")/../.."
mkdir -p runs/sweeps
list=$(mktemp "runs/sweeps/$(date +%Y%m%d-%H%M%S)-XXXX.txt")
printf '%s\n' "${lines[@]}" >"$list"
sbatch --array="0-$((${#lines[@]} - 1))" ${options[@]+"${options[@]}"} scripts/slurm/train.sbatch "@$list" || {
  rm "$list"
  fail "sbatch refused the jobs, see above"
}
echo "${#lines[@]} jobs; their arguments: $list"
