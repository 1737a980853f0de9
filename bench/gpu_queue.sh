#!/bin/sh
# gpu_queue.sh FOLDER TEXT: items 1 and 3 of the queue in docs/gpu.md, in one go on a CUDA machine.
#
# For a machine that can be had for minutes only: everything ends within 9 minutes, a step that fails or
# runs over its time does not stop those after it, and what is known lies in FOLDER at any moment:
# summary.txt (a line a step), a log of each step, gpu.csv.  TEXT (raw or .xz): real text, its last
# 10 MB are coded both ways.  Wants what docs/gpu.md wants, and pytest and hypothesis.
set -u
cd "$(dirname "$0")/.." || exit 1
folder=$1 text=$2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
export PYTHONPATH="$PWD/build/gpu${PYTHONPATH:+:$PYTHONPATH}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# step NAME SECONDS COMMAND...
step() {
  name=$1 limit=$2
  shift 2
  begun=$(date +%s)
  timeout "$limit" "$@" >"$folder/$name.log" 2>&1
  status=$?
  echo "$name: status $status, $(($(date +%s) - begun)) s: $(tail -n 1 "$folder/$name.log")" |
    tee -a "$folder/summary.txt"
}

# Kernels are compiled by one thread each, so tests share the cores where they can.
workers=
python3 -c 'import xdist' 2>/dev/null && workers="-p no:benchmark -n 8"

exchange() (
  case $text in
    *.xz) xz -dc "$text" ;;
    *) cat "$text" ;;
  esac | tail -c 10000000 >"$scratch/text"
  set -x
  python3 -m lmzip --device cuda --frame-size 256K --lanes 64 -k "$scratch/text" -o "$scratch/gpu.lmz" &&
    python3 -m lmzip --device cpu --frame-size 256K --lanes 64 -k "$scratch/text" -o "$scratch/cpu.lmz" &&
    cmp "$scratch/gpu.lmz" "$scratch/cpu.lmz" &&
    python3 -m lmzip -d --device cuda -c "$scratch/cpu.lmz" | cmp - "$scratch/text" &&
    sha256sum "$scratch/gpu.lmz" "$scratch/text" &&
    head -c 100000 "$scratch/text" >"$scratch/part" &&
    python3 -m lmzip --device cuda --lanes 64 -k "$scratch/part" -o "$folder/part.lmz" &&
    sha256sum "$scratch/part" "$folder/part.lmz" # to be decoded elsewhere
)

if [ "${3-}" = exchange ]; then
  exchange
  exit
fi
step device 10 nvidia-smi
step build 90 python3 bench/gpu.py --build --estimate
# shellcheck disable=SC2086
step frames 90 python3 -m pytest $workers -q -m gpu tests/test_torch_codec.py
step exchange 80 sh bench/gpu_queue.sh "$folder" "$text" exchange
step bytes 110 python3 bench/gpu.py --only bytes --text "$text" --results "$folder/gpu.csv" --minutes 1.2
# shellcheck disable=SC2086
step kernels 100 python3 -m pytest $workers -q -m "gpu or not gpu" tests/test_triton_kernels.py \
  tests/test_token_answers.py tests/test_torch_token_codec.py tests/test_torch_llama.py
step tokens 60 python3 bench/gpu.py --only tokens --results "$folder/gpu_tokens.csv" --minutes 0.6
