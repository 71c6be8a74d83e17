#!/usr/bin/env bash
# Evaluates the same networks under each protocol of results/protocol_sensitivity/README.md, and makes its table from them.
set -euo pipefail
usage="usage: scripts/protocol_sensitivity.sh PHOTOGRAPHS RUNS WORK [FIELD=VALUE ...]

PHOTOGRAPHS  a folder with val/CLASS/*
RUNS         a folder whose folders are trained networks, as train.py output_parent=RUNS makes it
WORK         where the stored images and the evaluations go
FIELD=VALUE is given to every evaluate.py, such as threads=1. The table goes to results/protocol_sensitivity/. The same command
continues what was stopped."
if [[ $# -lt 3 ]]; then echo "$usage" >&2; exit 2; fi
root=$(cd "$(dirname "$0")/.." && pwd)
photographs=$1 runs=$2 work=$3
shift 3
given=(data=folder "data.root=$photographs" corruptions=c15 "corruptions.severities=[3]" logger=none "checkpoints=[$runs/*]" "$@")

python_() {
  printf '+ python'; printf ' %q' "$@"; echo
  local script=$1; shift
  "${PYTHON:-python}" "$root/$script" "$@"
}
evaluate() { python_ evaluate.py "${given[@]}" "output=$work/$1" "${@:2}"; }

stored=corruptions.root=$work/images prepared=(data.preprocess=imagenet256 data.size=224)  # as ImageNet-C's images
evaluate memory "${prepared[@]}"
evaluate jpeg "${prepared[@]}" corruptions.jpeg_roundtrip=true
python_ scripts/make_imagenet_c.py "$photographs/val" "$work/images" --severities 3
evaluate stored "${prepared[@]}" "$stored"
evaluate resized "${prepared[@]}" "$stored" corruptions.resize=true
evaluate timm data.preprocess=timm
evaluate bf16 "${prepared[@]}" evaluation.precision=bf16
evaluate draws1 "${prepared[@]}" corruptions.seed=1
tables=()
for name in memory jpeg stored resized timm bf16 draws1; do tables+=("$name=$work/$name"); done
python_ scripts/protocol_sensitivity.py "${tables[@]}"
