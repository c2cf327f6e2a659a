#!/usr/bin/env bash
# Profiles the kernels of one operator with Nsight Compute.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'HELP'
usage: scripts/profile_ncu.sh OPERATOR [options]

Runs one call of an operator with a size from the networks under Nsight Compute (ncu), after a warm-up and a check of its
result, prints the metrics of each of its kernels and writes a file for ncu-ui.

  OPERATOR            as in resshift_fast.ops: group_norm, window_attention, posterior_step, ...
  --case TEXT         first case whose description contains TEXT; --list shows them. Default: the operator's first one.
  --dtype D           bfloat16, float16 or float32. Default: bfloat16.
  --latent N          side of the latent in pixels, a multiple of 64. Default: 64.
  --batch N           images. Default: 1.
  --backward          the backward pass instead of the forward one.
  --set NAME          sections that ncu collects: basic, detailed, full, ... Default: full.
  --output DIR        folder of OPERATOR.ncu-rep. Default: out/profile.
  --list              print the operator's cases and exit.
  --help              print this and exit.
PYTHON=... chooses the Python. Default: the first of the active environment's, that of .venv and those on PATH that has
this package installed.
HELP
}

die() {
    echo "error: $1" >&2
    exit "${2:-2}"
}

output=out/profile sections=full operator= list=
run=(scripts/run_operator.py)
while (($#)); do
    case $1 in
        --help | -h)
            usage
            exit
            ;;
        --list) list=1 ;;
        --backward) run+=("$1") ;;
        --output | --set | --case | --dtype | --latent | --batch)
            (($# > 1)) || die "$1 needs a value; see --help"
            case $1 in
                --output) output=$2 ;;
                --set) sections=$2 ;;
                *) run+=("$1" "$2") ;;
            esac
            shift
            ;;
        -*) die "unknown option $1; see --help" ;;
        *)
            [[ -z $operator ]] || die "two operators, $operator and $1; see --help"
            operator=$1
            ;;
    esac
    shift
done
[[ -n $operator ]] || die "name an operator; see --help"
source scripts/find_python.sh
run=("$PYTHON" "${run[@]}" "$operator")

"${run[@]}" --list >/dev/null # reports an unknown operator or case first
[[ -z $list ]] || exec "${run[@]}" --list

command -v ncu >/dev/null ||
    die "ncu is not installed: it comes with the CUDA Toolkit, as the package cuda-nsight-compute of NVIDIA's
repositories, and from https://developer.nvidia.com/nsight-compute. Without it:
$PYTHON benchmarks/operators.py --op $operator" 1
mkdir -p "$output"
ncu --profile-from-start off --target-processes all --set "$sections" --force-overwrite \
    --export "$output/$operator" "${run[@]}" ||
    die "ncu ended with $?. If it says ERR_NVGPUCTRPERM, the driver lets only administrators read the counters:
https://developer.nvidia.com/ERR_NVGPUCTRPERM" 1
ncu --import "$output/$operator.ncu-rep" --page details
echo "written: $output/$operator.ncu-rep"
