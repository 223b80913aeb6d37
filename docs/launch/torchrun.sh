#!/usr/bin/env bash
# OpenFlamingo-3B on one node, all of its GPUs. On several, run this on each, with the same HOST:
#   NODES=4 HOST=node0 OUTPUT=/shared/runs/3b bash docs/launch/torchrun.sh laion='…' mmc4='…'
set -euo pipefail

NODES=${NODES:-1}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
RECIPE=${RECIPE:-openflamingo-3b}
OUTPUT=${OUTPUT:-runs/$RECIPE}
# The published batch is that of 64 devices.
ACCUMULATE=${ACCUMULATE:-$((NODES * GPUS < 64 ? 64 / (NODES * GPUS) : 1))}

if [ "$NODES" = 1 ]; then
    where=(--standalone)
else
    # Whichever node asks first; a node that comes back after a failure finds the others by the same address.
    where=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "${HOST:?name of the first node}:29500" --rdzv-id "$RECIPE")
fi
# A process that dies takes the others with it; all start again, and go on from the last checkpoint.
exec torchrun "${where[@]}" --nproc-per-node "$GPUS" --max-restarts 3 \
    -m flamboyance.cli train "$RECIPE" output="$OUTPUT" gradient_accumulation_steps="$ACCUMULATE" "$@"
