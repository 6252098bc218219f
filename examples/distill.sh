#!/usr/bin/env bash
# Sequence-level knowledge distillation: train an autoregressive teacher on a data folder, let it write the training targets,
# make a data folder with them.  The new folder is used as the old one, by train.sh and all else.
#
#   distill.sh DATA OUTPUT [OPTION OF fastdiss-distill ...]
#
# TEACHER=FILE  a checkpoint to use; otherwise one is trained to OUTPUT.teacher by baselines.sh, with its variables: ARCH,
#               UPDATES, MAX_TOKENS, LR, SEED
# DEVICE=       --cpu: no GPU
#
# Decoding in parts, with a TEACHER: `distill.sh DATA OUTPUT --shard 1/4` to `--shard 4/4`, then the same without --shard.
# An interrupted training or decoding goes on where it was, and what is finished is not repeated.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/../scripts/recipe.sh"
[[ $# -ge 2 ]] || usage
data=$1 output=${2%/}
shift 2
[[ -d $data ]] || die "no data folder $data: make it with a prepare.sh"
read -ra device <<< "${DEVICE:-}"

[[ ! -e $output ]] || { echo "$output is there already"; exit; }
teacher=${TEACHER:-$output.teacher/ar/checkpoint_last.pt}
[[ -n ${TEACHER:-} ]] || BEAMS='' bash "$root/examples/baselines.sh" ar "$data" "$output.teacher"
fastdiss-distill "$data" --path "$teacher" --output "$output" "${device[@]}" "$@"
