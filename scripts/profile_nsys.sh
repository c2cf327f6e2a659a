#!/usr/bin/env bash
# Profiles a restoration with Nsight Systems and reports on it; with torch.profiler if nsys or a GPU is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'HELP'
usage: scripts/profile_nsys.sh [options]

Runs a restoration with random weights, records it with Nsight Systems (nsys) after a warm-up, and writes tables and a
plot of the time by stage, operator and kernel, the gaps, and the projected least time (floor). Without nsys or a CUDA
GPU, torch.profiler records instead, and the report has the same form.

Workload:
  --model NAME        model of the catalogue. Default: realsr-x4-v3.
  --size N            side of the square input in pixels. Default: 64.
  --batch N           images restored at once. Default: 1.
  --steps N           denoiser evaluations. Default: the model's number.
  --dtype D           bfloat16, float16 or float32. Default: bfloat16.
  --how WAY           eager, graphs (CUDA graphs) or torch (torch.compile). Default: graphs on CUDA, else eager.
  --device D          cuda, cuda:1, cpu, ... Default: cuda if available, else cpu.
  --warmup N          restorations before the recorded ones. Default: 2.
  --runs N            restorations that are recorded. Default: 3.
Recording and report:
  --output DIR        folder for all files. Default: out/profile.
  --graph-trace HOW   node records every kernel of a CUDA graph; graph records a graph as a whole, with less overhead.
                      Default: node.
  --gpu NAME          GPU whose floor is projected: h100, h200, a100, l40s or 4090. Default: the one that was recorded.
  --top N             rows of operators, kernels and gaps that are shown. Default: 15.
  --help              print this and exit.
PYTHON=... chooses the Python. Default: the first of the active environment's, that of .venv and those on PATH that has
this package installed.
HELP
}

die() {
    echo "error: $1" >&2
    exit "${2:-2}"
}

output=out/profile graph_trace=node device=
workload=(-m resshift_fast profile) report=(-m resshift_fast bench report)
while (($#)); do
    if [[ $1 == --help || $1 == -h ]]; then
        usage
        exit
    fi
    (($# > 1)) || die "$1 needs a value, or is unknown; see --help"
    case $1 in
        --output) output=$2 ;;
        --graph-trace) graph_trace=$2 ;;
        --gpu | --top) report+=("$1" "$2") ;;
        --device) device=$2 ;;
        --model | --size | --batch | --steps | --dtype | --how | --warmup | --runs) workload+=("$1" "$2") ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift 2
done
[[ $graph_trace == node || $graph_trace == graph ]] || die "--graph-trace is $graph_trace, expected node or graph"
[[ -z $device ]] || workload+=(--device "$device")
source scripts/find_python.sh
profile=("$PYTHON" "${workload[@]}" --output "$output")

instead=
if [[ -n $device && $device != cuda* ]]; then
    instead="the device is $device, and nsys records GPUs"
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    instead="torch finds no CUDA GPU here"
elif ! command -v nsys >/dev/null; then
    instead="nsys is not installed: it comes with the CUDA Toolkit, as the package nsight-systems-cli of NVIDIA's
repositories, and from https://developer.nvidia.com/nsight-systems/get-started"
fi

mkdir -p "$output"
if [[ -n $instead ]]; then
    echo "torch.profiler records in place of nsys: $instead" >&2
    "${profile[@]}" --tool torch
    recorded=$output/trace.json
else
    # The program starts and stops the recording, which excludes the warm-up; the CPU is not sampled.
    nsys profile --trace=cuda,nvtx --sample=none --cpuctxsw=none \
        --capture-range=cudaProfilerApi --capture-range-end=stop --cuda-graph-trace="$graph_trace" \
        --force-overwrite=true --output="$output/profile" "${profile[@]}" --tool nsys
    nsys export --type=sqlite --force-overwrite=true --output="$output/profile.sqlite" "$output/profile.nsys-rep"
    recorded=$output/profile.sqlite
fi
"$PYTHON" "${report[@]}" "$recorded"
