#!/usr/bin/env bash
# The Bible, Young's Literal Translation to the Bible in Basic English -> fairseq data.
#
#   prepare.sh [DESTINATION] [OPTION OF prepare_pairs.py ...]
#
# BIBLE=FOLDER       raw text: train, valid and test .ylt and .bbe, gzipped or not
# BIBLE_URL=URL      where to download from if there is no such folder
# PYTHON=PROGRAM     the Python to use (default: python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
python=${PYTHON:-python3}
destination=$root/data-bin/bible_ylt_bbe
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
    command -v curl >/dev/null || die "curl is missing; set BIBLE to a folder with the raw text"
    echo "downloading $url"
    curl --fail --location --silent --show-error --retry 3 --continue-at - --output "$file.part" "$url" || die "cannot download $url"
    mv "$file.part" "$file"
}

raw=${BIBLE:-}
if [[ -z $raw && -d $root/../shared/data/bible_simplification ]]; then
    raw=$root/../shared/data/bible_simplification
fi
if [[ -z $raw ]]; then
    raw=$root/data-bin/bible_raw
    url=${BIBLE_URL:-https://raw.githubusercontent.com/keithecarlson/StyleTransferBibleData/master/Data/Samples/YLTToBBE}
    mkdir -p "$raw"
    for names in Train:train Dev:valid Test:test; do
        download "$url/${names%:*}.sourc" "$raw/${names#*:}.ylt"
        download "$url/${names%:*}.tgt" "$raw/${names#*:}.bbe"
    done
fi
[[ -d $raw ]] || die "BIBLE names no folder: $raw"

"$python" "$root/scripts/prepare_pairs.py" "$destination" \
    --source-lang ylt --target-lang bbe --tokenizer-langs en en \
    --trainpref "$raw/train" --validpref "$raw/valid" --testpref "$raw/test" \
    --keep-eval --merges 8000 --max-ratio 3 "$@"
