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

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=${PYTHON:-python3}
source_lang=${SOURCE_LANG:-de}
target_lang=${TARGET_LANG:-en}
destination=$root/data-bin/multi30k_${source_lang}_${target_lang}
if [[ $# -gt 0 && $1 != -* ]]; then
    destination=$1
    shift
fi

die() {
    echo "prepare.sh: $*" >&2
    exit 1
}

# A file gets its name only once it is complete; an interrupted download is resumed.
download() {
    local url=$1 file=$2
    [[ -f $file ]] && return
    command -v curl >/dev/null || die "curl is missing; set MULTI30K to a folder with the raw text"
    echo "downloading $url"
    if ! gzip --test "$file.part" 2>/dev/null; then
        curl --fail --location --silent --show-error --retry 3 --continue-at - \
            --output "$file.part" "$url" || die "cannot download $url"
        gzip --test "$file.part" 2>/dev/null || { rm -f "$file.part"; die "$url is no gzip file"; }
    fi
    mv "$file.part" "$file"
}

raw=${MULTI30K:-}
if [[ -z $raw && -d $root/../shared/data/multi30k ]]; then
    raw=$root/../shared/data/multi30k
fi
if [[ -z $raw ]]; then
    raw=$root/data-bin/multi30k_raw
    url=${MULTI30K_URL:-https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw}
    mkdir -p "$raw"
    for name in train val test_2016_flickr; do
        for lang in "$source_lang" "$target_lang"; do
            download "$url/$name.$lang.gz" "$raw/$name.$lang.gz"
        done
    done
fi
[[ -d $raw ]] || die "MULTI30K names no folder: $raw"

"$python" "$root/scripts/prepare_pairs.py" "$destination" \
    --source-lang "$source_lang" --target-lang "$target_lang" \
    --trainpref "$raw/train" --validpref "$raw/val" --testpref "$raw/test_2016_flickr" \
    --keep-eval --merges 8000 --max-ratio 3 "$@"
