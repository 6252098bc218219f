#!/usr/bin/env bash
# WMT14 English-German, either direction -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# WMT14=FOLDER       the archives of statmt.org, if they are here already: training-parallel-europarl-v7.tgz,
#                    training-parallel-commoncrawl.tgz, training-parallel-nc-v9.tgz, dev.tgz and test-full.tgz
# WMT14_URL=URL      a mirror of https://www.statmt.org, with the same folders (wmt13/, wmt14/)
# PYTHON=PROGRAM     the Python to use (default: python3)
# SOURCE_LANG, TARGET_LANG (default: en, de)
#
# With --workers N (of prepare_pairs.py) N processes tokenise, apply BPE and binarise.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/recipe.sh"
direction en de
read_arguments "wmt14_${source_lang}_${target_lang}" "$@"

archive=${WMT14:-$root/data-bin/wmt14_raw}
if [[ -z ${WMT14:-} ]]; then
    url=${WMT14_URL:-https://www.statmt.org}
    for file in wmt13/training-parallel-{europarl-v7,commoncrawl} wmt14/{training-parallel-nc-v9,dev,test-full}; do
        download WMT14 "$url/$file.tgz" "$archive/${file#*/}.tgz"
    done
fi
[[ -d $archive ]] || die "WMT14 names no folder: $archive"
extract wmt14 --source-lang "$source_lang"
make_data "$raw" --source-lang "$source_lang" --target-lang "$target_lang" --as-published --merges 32000 --max-ratio 1.5 --max-tokens 250
