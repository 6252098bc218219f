#!/usr/bin/env bash
# The Bible, Young's Literal Translation to the Bible in Basic English -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# BIBLE=FOLDER       raw text: train, valid and test .ylt and .bbe, gzipped or not
# BIBLE_URL=URL      where to download from if there is no such folder
# PYTHON=PROGRAM     the Python to use (default: python3)
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
read_arguments bible_ylt_bbe "$@"

raw=${BIBLE:-}
if [[ -z $raw && -d $root/../shared/data/bible_simplification ]]; then
    raw=$root/../shared/data/bible_simplification
fi
if [[ -z $raw ]]; then
    raw=$root/data-bin/bible_raw
    url=${BIBLE_URL:-https://raw.githubusercontent.com/keithecarlson/StyleTransferBibleData/master/Data/Samples/YLTToBBE}
    for names in Train:train Dev:valid Test:test; do
        download BIBLE "$url/${names%:*}.sourc" "$raw/${names#*:}.ylt"
        download BIBLE "$url/${names%:*}.tgt" "$raw/${names#*:}.bbe"
    done
fi
[[ -d $raw ]] || die "BIBLE names no folder: $raw"

make_data "$raw" --source-lang ylt --target-lang bbe --tokenizer-langs en en --keep-eval --merges 8000 --max-ratio 3
