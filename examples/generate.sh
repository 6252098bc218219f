#!/usr/bin/env bash
# Decode a split with a FastDiSS checkpoint in K steps.
#
#   generate.sh DATA CHECKPOINT K [OPTION OF fairseq-generate ...]
#
# DATA is a folder that a recipe's prepare.sh made.
#
# OUTPUT=FILE  where to write (default: beside the checkpoint, SUBSET_kK.txt)
# SUBSET=test  DEVICE= (--cpu: no GPU)  BATCH_SIZE=128
#
# Words are joined again, Moses tokens are not: evaluate.sh does that, in the language that DATA names.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/recipe.sh"
[[ $# -ge 3 ]] || usage
data=$1 checkpoint=$2 steps=$3
shift 3
[[ -f $checkpoint ]] || die "no checkpoint $checkpoint"
subset=${SUBSET:-test}
output=${OUTPUT:-$(dirname "$checkpoint")/${subset}_k$steps.txt}
languages "$data"
read -ra device <<< "${DEVICE:-}"
mkdir -p "$(dirname "$output")"

fairseq-generate "$data" --user-dir "$root/fastdiss_fairseq" --task fastdiss -s "$source_lang" -t "$target_lang" \
    --path "$checkpoint" --gen-subset "$subset" --decoding-steps "$steps" --post-process subword_nmt \
    --batch-size "${BATCH_SIZE:-128}" "${device[@]}" "$@" > "$output.part" 2> "$output.log" ||
    { tail -n 1 "$output.log" >&2; rm -f "$output.part"; die "decoding failed: see $output.log"; }
mv "$output.part" "$output"
grep -F ' | WARNING | ' "$output.log" >&2 || true # options without effect, sources that were cut
rm -f "$output.log"
echo "$output"
