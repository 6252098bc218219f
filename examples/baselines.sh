#!/usr/bin/env bash
# fairseq's own models on the data folder of a FastDiSS model, as wide and deep as a FastDiSS architecture.
#
#   baselines.sh SYSTEM DATA OUTPUT [OPTION OF fairseq-train ...]
#
# SYSTEM  ar         autoregressive transformer
#         nat        one parallel pass (Gu et al., 2018; without fertilities)
#         inat       iterative refinement (Lee et al., 2018)
#         cmlm       mask-predict (Ghazvininejad et al., 2019)
#         levt       Levenshtein transformer (Gu et al., 2019)
#         insertion  insertion transformer (Stern et al., 2019)
#
# ARCH=fastdiss_tiny  whose sizes to take    UPDATES=2400  MAX_TOKENS=4000  LR=2e-3  SEED=1
# DEVICE=             --cpu: no GPU          SUBSET=test   split to decode
# ITERATIONS="1 4 10" of inat, cmlm, levt and insertion    BEAMS="1 5" of ar (empty: train only)
#
# Trains to OUTPUT/SYSTEM and writes fairseq-generate's output to OUTPUT/SYSTEM_N.txt (N: beam or iterations; of other
# splits than test to OUTPUT/SUBSET/SYSTEM_N.txt).  An interrupted training goes on where it was, and a finished one is not repeated.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/recipe.sh"
[[ $# -ge 3 ]] || usage
system=$1 data=$2 output=$3
shift 3
updates=${UPDATES:-2400}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
read -ra iterations <<< "${ITERATIONS:-1 4 10}"
read -ra beams <<< "${BEAMS-1 5}"
read -ra device <<< "${DEVICE:-}"

refiner=(--task translation_lev --criterion nat_loss)
predicted_length=(--pred-length-offset --length-loss-factor 0.1)
case $system in
    ar) kind=(--task translation --arch transformer --criterion label_smoothed_cross_entropy) ;;
    nat) kind=("${refiner[@]}" --arch nonautoregressive_transformer --noise full_mask "${predicted_length[@]}") iterations=(1) ;;
    inat) kind=("${refiner[@]}" --arch iterative_nonautoregressive_transformer --noise full_mask "${predicted_length[@]}"
        --train-step 4 --dae-ratio 0.5 --stochastic-approx) ;;
    cmlm) kind=("${refiner[@]}" --arch cmlm_transformer --noise random_mask "${predicted_length[@]}") ;;
    levt) kind=("${refiner[@]}" --arch levenshtein_transformer --noise random_delete) ;;
    insertion) kind=("${refiner[@]}" --arch insertion_transformer --noise random_delete) ;;
    *) echo "baselines.sh: unknown system $system (known: ar, nat, inat, cmlm, levt, insertion)" >&2; exit 1 ;;
esac

# The sizes, as options of fairseq's transformers.
sizes=$("$python" - "${ARCH:-fastdiss_tiny}" << 'PROGRAM'
import sys
from fastdiss_fairseq.models.config import ARCHITECTURES, architecture_config
if sys.argv[1] not in ARCHITECTURES:
    sys.exit(f"baselines.sh: unknown ARCH {sys.argv[1]} (known: {', '.join(ARCHITECTURES)})")
model = architecture_config(sys.argv[1])()
for side in ("encoder", "decoder"):
    for name in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads"):
        print(f"--{side}-{name}".replace("_", "-"), getattr(model, f"{side}_{name}"))
    if str(model.layer_norm_position) == "pre":
        print(f"--{side}-normalize-before")
print("--dropout", model.dropout)
PROGRAM
)
shared=(--user-dir "$root/fastdiss_fairseq" --required-batch-size-multiple 1 --data-buffer-size 0 --num-workers "$(workers "${DEVICE:-}")" "${device[@]}")

settings="$(basename "$data"): ARCH=${ARCH:-fastdiss_tiny} UPDATES=$updates MAX_TOKENS=${MAX_TOKENS:-4000} LR=${LR:-2e-3} SEED=${SEED:-1} $*"
mkdir -p "$output/$system"
if [[ -f $output/$system/checkpoint_last.pt && -f $output/$system/settings && $(< "$output/$system/settings") != "$settings" ]]; then
    echo "baselines.sh: $output/$system holds another training, $(< "$output/$system/settings"); take another OUTPUT" >&2
    exit 1
fi
echo "$settings" > "$output/$system/settings"
if [[ ! -f $output/$system/finished ]]; then
    # shellcheck disable=SC2086
    fairseq-train "$data" "${shared[@]}" "${kind[@]}" $sizes --share-all-embeddings --label-smoothing 0.1 \
        --optimizer adam --adam-betas '(0.9,0.98)' --lr "${LR:-2e-3}" --clip-norm 1 \
        --lr-scheduler polynomial_decay --total-num-update "$updates" --warmup-updates $((updates / 6)) \
        --max-tokens "${MAX_TOKENS:-4000}" --max-update "$updates" --seed "${SEED:-1}" --no-epoch-checkpoints \
        --validate-interval 5 --log-format simple --log-interval 50 --save-dir "$output/$system" "$@" \
        >> "$output/$system/train.log" 2>&1 || { echo "baselines.sh: training $system failed: see $output/$system/train.log" >&2; exit 1; }
    touch "$output/$system/finished"
fi

decode() {
    local folder=$output file
    [[ ${SUBSET:-test} == test ]] || folder=$output/$SUBSET
    file=$folder/$1.txt
    mkdir -p "$folder"
    shift
    [[ -f $file ]] && return
    fairseq-generate "$data" "${shared[@]}" --task "${kind[1]}" --path "$output/$system/checkpoint_last.pt" \
        --gen-subset "${SUBSET:-test}" --batch-size 128 --post-process subword_nmt "$@" > "$file.part" 2>&1 ||
        { echo "baselines.sh: decoding with $system failed: see $file.part" >&2; exit 1; }
    mv "$file.part" "$file"
}

if [[ $system == ar ]]; then
    for beam in "${beams[@]}"; do
        decode "ar_$beam" --beam "$beam"
    done
else
    for k in "${iterations[@]}"; do
        decode "${system}_$k" --iter-decode-max-iter $((k - 1)) --iter-decode-eos-penalty 0 --beam 1
    done
fi
