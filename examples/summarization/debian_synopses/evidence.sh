#!/usr/bin/env bash
# The evidence of RESULTS.md on Debian synopses: train standard and SCP + MANS alike, decode, score with ROUGE.
#
#   evidence.sh [OUTPUT]
#
# ARCH=fastdiss_tiny  UPDATES=2400  MAX_TOKENS=8000  JOBS=2  SEEDS="1"  options of the trainings
# OPTIONS=            further ones (the committed table: --mixed-times 0.5 --diffusion-loss-weight 1)
# DEVICE=--cpu        empty: a GPU
# STEPS="1 2 3 5 10 20 50"   REPEATS=merge   (keep: the committed table; both, too)
# Finished trainings and cells are not repeated.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
[[ $# -le 1 && ${1:-} != -* ]] || usage
data=$root/data-bin/debian_synopses
updates=${UPDATES:-2400}
device=${DEVICE---cpu}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

bash "$root/examples/summarization/debian_synopses/prepare.sh"

read -ra seeds <<< "${SEEDS:-1}"
fastdiss-ablate "$data" --output "${1:-$root/runs/synopses}" --jobs "${JOBS:-2}" \
    --systems standard scp+mans --seeds "${seeds[@]}" --train "\
    --arch ${ARCH:-fastdiss_tiny} --optimizer adam --adam-betas '(0.9,0.98)' --lr 2e-3 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update $updates --warmup-updates $((updates / 5)) \
    --max-tokens ${MAX_TOKENS:-8000} --max-update $updates --save-interval-updates $((updates / 3)) \
    --validate-interval 1000 --num-workers $(workers "$device") --log-interval 50 --log-noise-levels --share-all-embeddings --autocast bf16 $device ${OPTIONS:-}" \
    --sweep "--reference '$data/raw/test.syn' --detokenize en --metrics ROUGE-L ROUGE-1 ROUGE-2 BLEU \
    --steps ${STEPS:-1 2 3 5 10 20 50} --repeats ${REPEATS:-merge} --baseline standard $device"
