#!/usr/bin/env bash
# What a GPU does with gradient models, measured without Internet into one JSON file.
#
#     bench/gpu.sh WHEELS OUT.json [OPTION...]        the options are those of python -m bench.gpu
#     bench/gpu.sh - OUT.json --on cpu                with the Python that is active: nothing is installed
#
# WHEELS is a folder of packages, several gigabytes, filled beforehand where there is Internet, with the Python and on
# the platform of the machine that has the GPU, from the root of this repository:
#
#     pip wheel -w WHEELS ".[cuda,demo]" torch==2.13.0 torchvision==0.28.0
#
# and, for those who want them measured too, one of TensorRT (its libraries come from NVIDIA's own index) and TensorRT
# for RTX (GPUs of that kind only):
#
#     pip wheel -w WHEELS --extra-index-url https://pypi.nvidia.com ".[tensorrt]"
#     pip wheel -w WHEELS ".[tensorrt-rtx]"
#
# Needed there: a driver for CUDA 13, Python with venv, and a C compiler for torch.compile. PYTHON names the Python.
# The exit code is 1 if any part failed; why is in the file.
set -euo pipefail
if (($# < 2)); then
    sed -n '2,/^set/s/^#\( \|$\)//p' "$0" >&2
    exit 2
fi
wheels=$1
out=$(realpath -m "$2")
shift 2
python=${PYTHON:-python3}

if [[ $wheels != - ]]; then
    wheels=$(realpath "$wheels")
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    "$python" -m venv "$work"
    python=$work/bin/python
    extras=cuda,demo
    if compgen -G "$wheels/tensorrt_cu13-*" >/dev/null; then extras+=,tensorrt; fi
    if compgen -G "$wheels/tensorrt_rtx_cu13-*" >/dev/null; then extras+=,tensorrt-rtx; fi
    # of these packages only, whatever this machine's pip is told
    PIP_CONFIG_FILE=/dev/null "$python" -m pip --isolated install --quiet --no-index --find-links "$wheels" \
        "onnxplain[$extras]" torch torchvision
fi
cd "$(dirname "$0")/.."
"$python" -m bench.gpu -o "$out" "$@"
