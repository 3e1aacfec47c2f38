#!/usr/bin/env bash
# Pretraining on Slurm: one task per accelerator, on as many nodes as asked for.
#
#   sbatch slurm/pretrain.sh                                              # the quick start, on one node
#   sbatch --nodes=4 --gpus-per-node=8 slurm/pretrain.sh --ds_config zero3.json --recipe recipes/llama-8b.yaml
#   sbatch --nodes=2 --ntasks-per-node=4 slurm/pretrain.sh …              # without GPUs: say how many tasks
#
# Submit from the project's folder. Everything behind the script goes to launcher/train.py.
#SBATCH --job-name=pretrain
#SBATCH --requeue
# A requeued job writes on where its first life stopped.
#SBATCH --open-mode=append
set -uo pipefail

# sbatch runs a copy of this script from its spool folder: the project is where the job was submitted.
root=${SLURM_SUBMIT_DIR:?this is a batch script: sbatch slurm/pretrain.sh}
if [ ! -f "$root/launcher/train.py" ]; then
    echo "pretrain.sh: there is no launcher/train.py in $root: submit from the project's folder" >&2
    exit 2
fi
cd "$root" || exit 2
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[ $# -gt 0 ] || set -- --ds_config zero3.json

# As many tasks as the user asked for; else one an accelerator; else one a node.
tasks=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
nodes=${SLURM_JOB_NUM_NODES:-1}
# How the ranks meet (the first host of the step, a port from the job's number) they work out by themselves:
# launcher/cluster/rank.py. OMP_NUM_THREADS is left alone: each rank takes its share of the node's cores.
echo "pretrain.sh: job ${SLURM_JOB_ID:-?}, ${nodes} nodes x ${tasks} tasks: python -m launcher.train $*"
srun --nodes="$nodes" --ntasks-per-node="$tasks" --ntasks=$((nodes * tasks)) --kill-on-bad-exit=1 \
    python -u -m launcher.train "$@"
code=$?

# 75: stopped on the way, the same command goes on from the last checkpoint. Anything else is the job's own result.
if [ "$code" -eq 75 ]; then
    echo "pretrain.sh: the run asks to go on: requeued"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
