#!/usr/bin/env bash
# Quora question pairs, a question to its paraphrase -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# QQP=PATH         train.jsonl, valid.jsonl and test.jsonl as DiffuSeq publishes them (144,715, 2,048 and 2,500 pairs): the
#                  folder, or an archive of it.  Published scores are on this split.
# QQP_URL=URL      where to download such an archive from
# QUORA=FILE       without them: Quora's own quora_duplicate_questions.tsv; its duplicates are split here, so that
#                  scores cannot be compared with published ones
# QUORA_URL=URL    where to download that from
# PYTHON=PROGRAM   the Python to use (default: python3)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
read_arguments qqp "$@"

if [[ -n ${QQP:-}${QQP_URL:-} ]]; then
    locate QQP "${QQP_URL:-}" "$root/data-bin/qqp_raw/qqp.zip"
    extract diffuseq
    cleaning=(--as-published)
else
    echo "prepare.sh: QQP is not set, so this is a split of Quora's table, not DiffuSeq's"
    locate QUORA "${QUORA_URL:-http://qim.fs.quoracdn.net/quora_duplicate_questions.tsv}" \
        "$root/data-bin/qqp_raw/quora_duplicate_questions.tsv"
    extract quora
    cleaning=()
fi
make_data "$raw" --source-lang src --target-lang trg --tokenizer-langs en en "${cleaning[@]}" --merges 10000
