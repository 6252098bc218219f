#!/usr/bin/env bash
# Multi30k, German to English: raw captions -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# MULTI30K=FOLDER    raw text: train, val and test_2016_flickr .de and .en, gzipped or not
# MULTI30K_URL=URL   where to download from if there is no such folder
# PYTHON=PROGRAM     the Python to use (default: python3)
# SOURCE_LANG, TARGET_LANG (default: de, en)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
direction de en
read_arguments "multi30k_${source_lang}_${target_lang}" "$@"

raw=${MULTI30K:-}
if [[ -z $raw && -d $root/../shared/data/multi30k ]]; then
    raw=$root/../shared/data/multi30k
fi
if [[ -z $raw ]]; then
    raw=$root/data-bin/multi30k_raw
    url=${MULTI30K_URL:-https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw}
    for name in train val test_2016_flickr; do
        for lang in "$source_lang" "$target_lang"; do
            download MULTI30K "$url/$name.$lang.gz" "$raw/$name.$lang.gz"
        done
    done
fi
[[ -d $raw ]] || die "MULTI30K names no folder: $raw"

make_data "$raw" --validpref "$raw/val" --testpref "$raw/test_2016_flickr" \
    --source-lang "$source_lang" --target-lang "$target_lang" --keep-eval --merges 8000 --max-ratio 3
