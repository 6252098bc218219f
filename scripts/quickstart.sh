#!/usr/bin/env bash
# From nothing to a table: install, prepare a real corpus, decode its test set with the model that is
# shipped; on request train fastdiss_tiny as well and decode with it.
#
#   scripts/quickstart.sh [--corpus NAME] [--train] [--minutes N] [--output FOLDER]
#
# --corpus   multi30k (default), debian_synopses, or debian_de_en, for which no model is shipped: it trains
# --train    train as well
# --minutes  time for training (default 9); implies --train
# --output   where checkpoints, outputs and the table go (default: runs/quickstart_CORPUS)
#
# A GPU is used where there is one.  A second run reuses the environment, the data and the model; a
# training that was interrupted goes on.  Options of the environment: see scripts/environment.sh.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh" # --help

corpus=multi30k minutes=9 output='' train=''
while [[ $# -gt 0 ]]; do
    [[ $1 == --train || $# -ge 2 ]] || die "$1 needs a value"
    case $1 in
        --corpus) corpus=$2 ;;
        --train) train=yes ;;
        --minutes) minutes=$2 train=yes ;;
        --output) output=$2 ;;
        *) die "unknown option $1 (known: --corpus, --train, --minutes, --output)" ;;
    esac
    [[ $1 == --train ]] || shift
    shift
done
[[ $minutes =~ ^[0-9]*[1-9][0-9]*$ ]] || die "--minutes must be a whole number of at least 1, not $minutes"
minutes=$((10#$minutes)) # 08 is no octal number
output=${output:-runs/quickstart_$corpus}

metrics=(BLEU chrF)
detokenise=(--eval-bleu-detok moses --eval-bleu-detok-args '{"target_lang": "en"}')
case $corpus in
    multi30k) recipe=translation/multi30k name=multi30k_de_en pair=(de en) ;;
    debian_de_en) recipe=translation/debian_de_en name=debian_de_en pair=(de en) ;;
    debian_synopses) recipe=summarization/debian_synopses name=debian_synopses pair=(desc syn)
        metrics=(ROUGE-L ROUGE-1 ROUGE-2 BLEU) ;;
    *) die "unknown corpus $corpus (known: multi30k, debian_de_en, debian_synopses)" ;;
esac

source "$root/scripts/environment.sh" # installs, once the options are known to be right

cd "$root"
data=data-bin/$name
echo "== data"
bash "examples/$recipe/prepare.sh"

# The shipped model brings its own dictionary and BPE codes, so it reads the raw text.
shipped=models/$name
if [[ -d $shipped ]]; then
    echo "== the shipped model ($shipped) on the test set, raw text in, raw text out"
    fastdiss-export --verify "$shipped"
    mkdir -p "$output"
    for k in 1 5 20; do
        fairseq-interactive "$shipped" --path "$shipped/model.pt" --user-dir fastdiss_fairseq --task fastdiss \
            -s "${pair[0]}" -t "${pair[1]}" --tokenizer moses --bpe subword_nmt --bpe-codes "$shipped/codes" --decoding-steps "$k" \
            --buffer-size 2000 --batch-size 128 --input "$data/raw/test.${pair[0]}" > "$output/shipped_$k.txt" 2> "$output/shipped_$k.log"
        echo "K = $k: $(fastdiss-score "$output/shipped_$k.txt" "$data/raw/test.${pair[1]}" --metrics "${metrics[@]}" | tr -d '\n')"
    done
    echo "source, reference and output at K = 5 of the first ten:"
    paste -d '\n' <(head -10 "$data/raw/test.${pair[0]}") <(head -10 "$data/raw/test.${pair[1]}") \
        <(grep '^D-' "$output/shipped_5.txt" | head -10 | cut -f 3) <(yes '' | head -10)
else
    train=yes
fi
if [[ -z $train ]]; then
    echo "to train a model as well: scripts/quickstart.sh --corpus $corpus --train"
    exit
fi

# The learning rate and the phases of MANS need to know how many updates there will be.
device=(--cpu --num-workers 0)
updates=$((minutes * 140))
if grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then  # other CPUs are slower in bfloat16
    device+=(--autocast bf16)
    updates=$((minutes * 240))
fi
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    device=(--autocast bf16 --optimizer fused_adam)
    updates=$((minutes * 900))
fi

mkdir -p "$output"
if [[ -f $output/trained ]]; then
    echo "== trained already, $(cat "$output/trained"): --output another folder to train anew"
else
    echo "== training fastdiss_tiny for $minutes minutes (at most $updates updates); log: $output/train.log"
    hours=$(python -c "print($minutes / 60)")
    fairseq-train "$data" --user-dir fastdiss_fairseq --task fastdiss -s "${pair[0]}" -t "${pair[1]}" \
        --arch fastdiss_tiny --criterion fastdiss_loss \
        --optimizer adam --adam-betas '(0.9,0.98)' --lr 2e-3 --clip-norm 1 \
        --lr-scheduler inverse_sqrt --warmup-updates $((updates / 5 < 400 ? updates / 5 : 400)) \
        --max-tokens 2000 --max-update "$updates" --stop-time-hours "$hours" \
        --validate-interval 1000 --save-interval-updates $((updates / 3)) --batch-size-valid 128 \
        --eval-bleu --eval-bleu-args '{"decoding_steps": 5}' --eval-bleu-remove-bpe "${detokenise[@]}" \
        --best-checkpoint-metric bleu --maximize-best-checkpoint-metric \
        --no-epoch-checkpoints --keep-interval-updates 1 --save-dir "$output" \
        --log-format simple --log-interval 25 "${device[@]}" 2>&1 \
        | tee "$output/train.log" | python scripts/show_progress.py
    echo "for $minutes minutes" > "$output/trained"
fi

echo "== decoding the test set"
fastdiss-sweep "$data" --path "$output/checkpoint_best.pt" --reference "$data/raw/test.${pair[1]}" \
    --detokenize en --metrics "${metrics[@]}" --steps 1 2 5 10 20 --samples 10 --output "$output/test"
