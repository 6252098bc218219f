#!/usr/bin/env bash
# FastDiSS beside fairseq's models on one data folder: train what is missing, decode, one table of quality, steps and speed.
#
#   compare.sh DATA OUTPUT SYSTEM ...
#
# SYSTEM: standard, scp, mans, scp+mans (FastDiSS), ar, nat, inat, cmlm, levt, insertion (examples/baselines.sh)
#
# ARCH=fastdiss_tiny  UPDATES=1800  MAX_TOKENS=4000  LR=2e-3  SEED=1   the same for all systems
# OPTIONS=            further options of the FastDiSS trainings, such as --share-all-embeddings
# DEVICE=             --cpu: no GPU
# STEPS="1 2 5 10 20" evaluations of FastDiSS   ITERATIONS="1 4 10"   of the iterative baselines
# METRICS="BLEU chrF" of BLEU, chrF, ROUGE-1, ROUGE-2, ROUGE-L; the first is tested for significance,
#                     against the first of FastDiSS' systems
#
# Writes OUTPUT/test: results.json, table.md, plots.  What is finished is not repeated.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/recipe.sh"
[[ $# -ge 3 ]] || usage
data=$1 output=$2
shift 2
export UPDATES=${UPDATES:-1800} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
read -ra steps <<< "${STEPS:-1 2 5 10 20}"
read -ra metrics <<< "${METRICS:-BLEU chrF}"
read -ra device <<< "${DEVICE:-}"

languages "$data"

ours=() baselines=() outputs=()
for system in "$@"; do
    case $system in
        standard | scp | mans | scp+mans) ours+=("$system") ;;
        ar | nat | inat | cmlm | levt | insertion) baselines+=("$system") ;;
        *) die "unknown system $system" ;;
    esac
done

theirs=$output
[[ ${SEED:-1} == 1 ]] || theirs=$output/seed$SEED
for system in ${baselines[@]+"${baselines[@]}"}; do
    env -u BEAMS SUBSET=test bash "$root/examples/baselines.sh" "$system" "$data" "$theirs"
    for file in "$theirs/${system}"_*.txt; do
        number=${file##*_}
        number=${number%.txt}
        if [[ $system == ar ]]; then outputs+=("ar_beam$number=$file"); else outputs+=("$system:$number=$file"); fi
    done
done

paths=()
if [[ ${#ours[@]} -gt 0 ]]; then
    fastdiss-ablate "$data" --output "$output" --systems "${ours[@]}" --seeds "${SEED:-1}" --train "\
        --arch ${ARCH:-fastdiss_tiny} --optimizer adam --adam-betas '(0.9,0.98)' --lr ${LR:-2e-3} --clip-norm 1 \
        --lr-scheduler polynomial_decay --total-num-update $UPDATES --warmup-updates $((UPDATES / 6)) \
        --max-tokens ${MAX_TOKENS:-4000} --max-update $UPDATES --validate-interval 5 --num-workers $(workers "${DEVICE:-}") \
        --log-interval 50 ${OPTIONS:-} ${DEVICE:-}"
    for system in "${ours[@]}"; do
        [[ ${SEED:-1} == 1 ]] && folder=$system || folder=$system-seed$SEED
        paths+=("$output/$folder/checkpoint_last.pt")
    done
    paths=(--path "${paths[@]}" --systems "${ours[@]}" --baseline "${ours[0]}")
fi
fastdiss-sweep "$data" "${paths[@]}" ${outputs[@]+--outputs "${outputs[@]}" --output-repeats keep merge} \
    --reference "$data/raw/test.$target_lang" \
    --detokenize "${languages##* }" --metrics "${metrics[@]}" --steps "${steps[@]}" --output "$output/test" "${device[@]}"
