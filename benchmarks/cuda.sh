#!/usr/bin/env bash
# Everything that needs a CUDA device, in under 8 minutes: tests, speed, agents, whole episodes. JSON files in OUT.
#
#     OUT=figures bash benchmarks/cuda.sh
#
# Run from the repository root, where torch with CUDA is installed. What the machine lacks can be carried in a folder
# `.device/` (ignored by git), which this script reads where it is there:
#     .device/wheels/*.whl         gymnasium, farama-notifications, stable-baselines3, platformdirs, unpacked beside
#     .device/mnist.tar.xz         MNIST/raw as torchvision lays it out
#     .device/cifar10-jpeg.tar.xz  and unpack_cifar10.py, which makes an .npz of it
# A part that fails or exceeds its seconds does not stop the others; then the exit status is 1. No part runs longer than
# what is left of `total`.
set -uo pipefail
out=${OUT:?"set OUT to the folder for the figures"}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD:$PWD/agents:$PWD/benchmarks:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
failed=0
total=${TOTAL:-470} # seconds, of all parts

part() { # seconds, name, command...
    local seconds=$1 name=$2 started=$SECONDS
    shift 2
    printf '\n=== %s\n' "$name"
    if [ $((total - SECONDS)) -lt "$seconds" ]; then
        seconds=$((total - SECONDS > 0 ? total - SECONDS : 1))
    fi
    timeout "$seconds" "$@" 2>&1 | tee -a "$out/log.txt"
    local status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || failed=1
    printf '=== %s: exit %s, %s s\n' "$name" "$status" $((SECONDS - started))
}

for wheel in .device/wheels/*.whl; do
    [ -e "$wheel" ] && python3 -m zipfile -e "$wheel" "$work/site"
done
[ -d "$work/site" ] && export PYTHONPATH="$PYTHONPATH:$work/site"
if [ -e .device/mnist.tar.xz ]; then
    mkdir -p "$work/data" && tar -xf .device/mnist.tar.xz -C "$work/data" && export QAN_GYM_DATA="$work/data"
fi
python3 -c "import torch; print(torch.__version__, torch.cuda.get_device_name())" || exit 1
cuda="--set device=cuda"

part 150 "tests" python3 -m pytest $(grep -l "mark.cuda" tests/test_*.py) -m cuda -n 6 -q -p no:cacheprovider
part 90 "throughput" python3 benchmarks/throughput.py --device cuda --rounds 10 --largest 4096 \
    --json "$out/throughput-cuda.json"
part 90 "agents" python3 benchmarks/agents.py --device cuda --num-envs 128 --rounds 4 --json "$out/agents-cuda.json"
if [ -e .device/unpack_cifar10.py ]; then
    python3 .device/unpack_cifar10.py "$work/cifar10.npz"
    nin="$cuda --set dataset=$work/cifar10.npz --set meta_momentum=null"
    part 60 "NIN, 1" python3 benchmarks/episode.py QanLR-CIFAR10-v0 $nin --json "$out/episode-nin-1-cuda.json"
    part 110 "NIN, 16, an epoch" python3 benchmarks/episode.py QanLR-CIFAR10-v0 $nin --num-envs 16 --steps 351 \
        --json "$out/episode-nin-16-cuda.json"
fi
# The longest last: it leaves the figures of the epochs that there was time for.
part 200 "MNIST, the paper's budget, 20 at once" python3 benchmarks/episode.py QanLR-MNIST-v0 --num-envs 20 $cuda \
    --json "$out/episode-mnist-cuda.json"
exit $failed
