# Sourced by examples/*.sh and by the prepare.sh of every recipe.
#
# PYTHON=PROGRAM  the Python to use (default: python3)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)
python=${PYTHON:-python3}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# help: prints the comment at the head of the calling script; usage: dies with it.
help() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

usage() {
    help >&2
    exit 1
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    help
    exit
fi

# run COMMAND...: does it, or prints it where DRY_RUN says so.
run() {
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

# workers DEVICE: how many processes make batches: none beside a CPU's own work; one for a GPU, which would wait for them.
workers() {
    if [[ ${1:-} == --cpu ]]; then echo 0; else echo 1; fi
}

# direction SOURCE TARGET: sets `source_lang` and `target_lang` to SOURCE_LANG and TARGET_LANG; of one that is given the other
# side is what remains of SOURCE and TARGET.
direction() {
    source_lang=${SOURCE_LANG:-$1} target_lang=${TARGET_LANG:-$2}
    [[ $source_lang == "$target_lang" ]] || return 0
    if [[ -z ${TARGET_LANG:-} ]]; then target_lang=$1; fi
    if [[ -z ${SOURCE_LANG:-} ]]; then source_lang=$2; fi
}

# read_arguments NAME "$@": sets `destination` (the first argument, or data-bin/NAME), `options` (all others) and
# `recipe`, the calling script's folder under examples/.
read_arguments() {
    command -v "$python" > /dev/null || die "there is no $python: set PYTHON to a Python with fairseq"
    recipe=$(cd "$(dirname "${BASH_SOURCE[1]}")" > /dev/null && pwd)
    recipe=${recipe#"$root/examples/"}
    destination=$root/data-bin/$1
    shift
    if [[ $# -gt 0 && $1 != -* ]]; then
        destination=$1
        shift
    fi
    options=("$@")
}

# check_whole FILE NAME [SHA256]: removes FILE and dies unless it is whole; where the publisher gives no checksum, a
# compressed file's own is read.  NAME tells whether it is one, and stands in the message.
check_whole() {
    local file=$1 name=$2 expected=${3:-} found
    if [[ -n $expected ]]; then
        found=$("$python" "$root/scripts/archives.py" sha256 "$file") || die "cannot read $file"
        [[ $found == "$expected" ]] || { rm -f "$file"; die "$name: its SHA-256 is $found, not $expected, so it is removed"; }
    elif [[ $name == *gz || $name == *.zip ]]; then
        "$python" "$root/scripts/archives.py" check "$file" 2> /dev/null || { rm -f "$file"; die "$name is no archive, or was cut short"; }
    fi
}

# fetch URL FILE: goes on with FILE where the server can, or else begins anew.
fetch() {
    local get=(curl --fail --location --silent --show-error --retry 3 --output "$2" "$1") status=0
    "${get[@]}" --continue-at - || status=$?
    [[ $status == 33 ]] || return "$status" # it knows no ranges
    "${get[@]}"
}

# download VARIABLE URL FILE [SHA256]: FILE gets its name only once it is whole, and an interrupted download goes on.
# VARIABLE is what the user may set instead.
download() {
    local variable=$1 url=$2 file=$3
    [[ -f $file ]] && return
    [[ -n $url ]] || die "there is no public address to download from: set $variable"
    command -v curl > /dev/null || die "curl is missing; download $url yourself and set $variable"
    mkdir -p "$(dirname "$file")"
    echo "downloading $url"
    fetch "$url" "$file.part" || die "cannot download $url (or set $variable)"
    check_whole "$file.part" "${file##*/}" "${4:-}"
    mv "$file.part" "$file"
}

# locate VARIABLE URL FILE [SHA256]: sets `archive` to the file or folder that VARIABLE names, or to FILE, downloaded.
locate() {
    archive=${!1:-}
    if [[ -z $archive ]]; then
        download "$@"
        archive=$3
    fi
    [[ -e $archive ]] || die "$1 names no file: $archive"
}

# raw_folder: sets `raw` to a folder that the exit removes.
raw_folder() {
    raw=$(mktemp -d)
    trap 'rm -rf "$raw"' EXIT
}

# extract LAYOUT [OPTION ...]: the publisher's files in `archive` -> raw text in `raw`.
extract() {
    raw_folder
    "$python" "$root/scripts/published_corpus.py" "$1" "$archive" "$raw" "${@:2}"
}

# extract_debian CORPUS [OPTION ...]: Debian's package descriptions -> raw text in `raw`.
extract_debian() {
    local text=${DEBIAN_TEXT:-$root/data-bin/debian_text}
    raw_folder
    "$python" "$root/scripts/debian_corpus.py" fetch "$text"
    "$python" "$root/scripts/debian_corpus.py" "$1" "$text" "$raw" "${@:2}"
}

# make_data RAW OPTION ...: raw text -> the data folder.
make_data() {
    "$python" "$root/scripts/prepare_pairs.py" "$destination" --recipe "$recipe" \
        --trainpref "$1/train" --validpref "$1/valid" --testpref "$1/test" "${@:2}" "${options[@]}"
}

# languages DATA: sets `source_lang`, `target_lang` and `languages`, the tokeniser's, to what DATA says.
languages() {
    source_lang=$(setting "$1" source_lang) || exit 1
    target_lang=$(setting "$1" target_lang) || exit 1
    languages=$(setting "$1" tokenizer_langs) || exit 1
}

# recipe_of DATA: RECIPE, or the one that DATA was prepared by.
recipe_of() {
    local found=${RECIPE:-}
    [[ -n $found ]] || found=$(setting "$1" recipe) || exit 1
    [[ $found != None ]] || die "$1 is of no recipe: set RECIPE to one whose options fit, such as RECIPE=translation/iwslt14"
    echo "$found"
}

# setting DATA NAME: what prepare.sh wrote down about a data folder: the value of settings.NAME, or of NAME.
setting() {
    "$python" - "$1/stats.json" "$2" 2> /dev/null << 'PROGRAM' || die "$1 does not say its $2: was it made by a prepare.sh of this repository?"
import json, sys
stats = json.load(open(sys.argv[1], encoding="utf-8"))
value = {**stats, **stats["settings"]}[sys.argv[2]]
print(*(value if isinstance(value, list) else [value]))
PROGRAM
}
