#!/usr/bin/env bash
# The evidence of RESULTS.md on Multi30k De-En: train standard, +SCP, +MANS and both alike, and fairseq's
# autoregressive transformer and CMLM; decode; one table, one results.json, plots.
#
#   evidence.sh [OUTPUT]
#
# ARCH=fastdiss_tiny  UPDATES=1800  MAX_TOKENS=4000  JOBS=2  SEEDS="1 2"  options of the trainings
# OPTIONS=            further ones of the FastDiSS trainings
# BASELINE_UPDATES=1800  of fairseq's models
# DEVICE=--cpu        empty: a GPU
# STEPS="1 2 3 5 10 20 50"
# Finished trainings and cells are not repeated: with checkpoints in OUTPUT this makes the tables alone.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
[[ $# -le 1 && ${1:-} != -* ]] || usage
data=$root/data-bin/multi30k_de_en
output=${1:-$root/runs/ablation}
updates=${UPDATES:-1800}
device=${DEVICE---cpu}
read -ra steps <<< "${STEPS:-1 2 3 5 10 20 50}"
read -ra seeds <<< "${SEEDS:-1 2}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

bash "$root/examples/translation/multi30k/prepare.sh"

fastdiss-ablate "$data" --output "$output" --jobs "${JOBS:-2}" --seeds "${seeds[@]}" --train "\
    --arch ${ARCH:-fastdiss_tiny} --optimizer adam --adam-betas '(0.9,0.98)' --lr 2e-3 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update $updates --warmup-updates $((updates / 6)) \
    --max-tokens ${MAX_TOKENS:-4000} --max-update $updates --save-interval-updates $((updates / 2)) \
    --validate-interval 1000 --num-workers $(workers "$device") --log-interval 50 --log-noise-levels --autocast bf16 $device ${OPTIONS:-}"
for system in ar cmlm; do
    UPDATES=${BASELINE_UPDATES:-1800} DEVICE=$device bash "$root/examples/baselines.sh" "$system" "$data" "$output/baselines"
done

paths=() names=()
for system in standard scp mans scp+mans; do
    for checkpoint in "$output/$system"/checkpoint_last.pt "$output/$system"-seed*/checkpoint_last.pt; do
        [[ -f $checkpoint ]] && paths+=("$checkpoint") && names+=("$system")
    done
done
sweep() {
    local subset=$1 folder=$2
    shift 2
    fastdiss-sweep "$data" --path "${paths[@]}" --systems "${names[@]}" --subset "$subset" \
        --reference "$data/raw/$subset.en" --detokenize en --output "$output/$folder" $device "$@"
}

echo "== the decoding rule, on validation"
sweep valid rule --steps 1 2 5 10 20 --solver mask_predict renoise
sweep valid rule --steps 2 5 20 --solver renoise --told-noise-factor 4
sweep valid rule --steps 2 5 20 --solver mask_predict --temperature 0 0.5

echo "== the test set"
baselines=("ar=$output/baselines/ar_5.txt" "ar_beam1=$output/baselines/ar_1.txt")
for file in "$output"/baselines/cmlm_*.txt; do
    name=${file##*/cmlm_}
    baselines+=("cmlm:${name%.txt}=$file")
done
sweep test test --steps "${steps[@]}" --repeats keep --baseline standard
sweep test test --steps 1 5 --length-beam 5 --noise-beam 2 --choice mbr --baseline standard
sweep test test --steps "${steps[@]}" --self-conditioning previous recompute none --baseline standard --outputs "${baselines[@]}" --output-repeats keep merge
