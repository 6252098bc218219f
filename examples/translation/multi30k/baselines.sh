#!/usr/bin/env bash
# fairseq's own models on the same data folder: autoregressive transformer and CMLM, as wide and deep as fastdiss_tiny.
#
#   baselines.sh ar|cmlm [DATA] [OUTPUT] [OPTION OF fairseq-train ...]
#
# UPDATES=N   updates (default 2400); trains to OUTPUT/SYSTEM, then decodes SUBSET (default: test):
#             ar with beams 1 and 5 (ar_beam1.txt, ar_beam5.txt), cmlm with 1, 4 and 10 iterations (cmlm_K.txt).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
[[ $# -ge 1 ]] || { sed -n 's/^# \{0,1\}//;2,8p' "$0" >&2; exit 1; }
system=$1
data=${2:-$root/data-bin/multi30k_de_en}
output=${3:-$root/runs/baselines}
shift $(($# < 3 ? $# : 3))
updates=${UPDATES:-2400}
subset=${SUBSET:-test}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

sizes=()
for side in encoder decoder; do
    sizes+=("--$side-embed-dim" 128 "--$side-ffn-embed-dim" 512 "--$side-layers" 2 "--$side-attention-heads" 4)
done
shared=(--user-dir "$root/fastdiss_fairseq" --source-lang de --target-lang en --required-batch-size-multiple 1 --data-buffer-size 0 --num-workers 0)
case $system in
    ar) kind=(--task translation --arch transformer --criterion label_smoothed_cross_entropy) ;;
    cmlm) kind=(--task translation_lev --arch cmlm_transformer --criterion nat_loss --noise random_mask --pred-length-offset --length-loss-factor 0.1) ;;
    *) echo "baselines.sh: unknown system $system (known: ar, cmlm)" >&2; exit 1 ;;
esac

mkdir -p "$output/$system"
fairseq-train "$data" "${shared[@]}" "${kind[@]}" "${sizes[@]}" --share-all-embeddings \
    --label-smoothing 0.1 --dropout 0.1 --encoder-normalize-before --decoder-normalize-before \
    --optimizer adam --adam-betas '(0.9,0.98)' --lr 2e-3 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" --warmup-updates $((updates / 6)) \
    --max-tokens 4000 --max-update "$updates" --seed 1 --no-epoch-checkpoints --validate-interval 5 \
    --log-format simple --log-interval 50 --save-dir "$output/$system" "$@" >> "$output/$system/train.log" 2>&1

decode() {
    local name=$1
    shift
    fairseq-generate "$data" "${shared[@]}" --task "${kind[1]}" --path "$output/$system/checkpoint_last.pt" \
        --gen-subset "$subset" --batch-size 128 --post-process subword_nmt "$@" > "$output/$name.txt" 2>&1
}

if [[ $system == ar ]]; then
    for beam in 1 5; do
        decode "ar_beam$beam" --beam "$beam"
    done
else
    for k in 1 4 10; do
        decode "cmlm_$k" --iter-decode-max-iter $((k - 1)) --iter-decode-eos-penalty 0 --beam 1
    done
fi
