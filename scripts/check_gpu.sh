#!/usr/bin/env bash
# What only a GPU can show of FastDiSS' correctness and speed, with the shipped Multi30k model, in some ten minutes.
#
#   scripts/check_gpu.sh [OUTPUT]        (default: runs/gpu)
#
# The tests of CUDA graphs, fused Adam and half precision; in how many sentences of the test set CUDA graphs, torch.compile
# and bfloat16 give the tokens of float32; fairseq-generate by CUDA graphs, with a worker; the time of decoding, of single
# evaluations, of training steps, with their memory, and of optimizers.  Ends in a table, OUTPUT/table.md; the numbers are in
# OUTPUT/results.json.  A part that fails does not keep the others from being done; the script then exits with 1.
#
# AR= NAT= CMLM= LEVT=   checkpoints of fairseq's models (examples/baselines.sh), to be timed beside it
# DRY_RUN=1              print the commands
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"
[[ $# -le 1 ]] || usage
output=${1:-runs/gpu}
cd "$root"
data=data-bin/multi30k_de_en model=models/multi30k_de_en/model.pt failed=0

part() {
    run "$@" || failed=1
}

benchmark() {
    part fastdiss-benchmark "$data" --path "$model" --output "$output" "$@"
}

baselines=()
for name in AR NAT CMLM LEVT; do
    [[ -z ${!name:-} ]] || baselines+=("--${name,,}" "${!name}")
done
[[ -n ${DRY_RUN:-} ]] || "$python" -c "import torch; exit(not torch.cuda.is_available())" 2> /dev/null ||
    die "there is no torch that sees a GPU (is the environment active? . .venv/bin/activate)"
run bash examples/translation/multi30k/prepare.sh
part "$python" -m pytest -q tests/test_graphs.py tests/test_optim.py tests/test_half_precision.py
benchmark --parts agreement --variants cuda_graphs compile bf16 --steps 1 2 5 20 --batch-sizes 64
part fairseq-generate "$data" --user-dir fastdiss_fairseq --task fastdiss --path "$model" --decoding-steps 5 \
    --decoding-cuda-graphs --num-workers 1 --batch-size 16 --results-path "$output/generate"
benchmark --parts decoding step --variants cuda_graphs bf16 --steps 1 2 5 10 20 50 "${baselines[@]}"
benchmark --parts training optimizer --rounds 20 "${baselines[@]}"
exit "$failed"
