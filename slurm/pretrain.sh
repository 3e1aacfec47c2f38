#!/usr/bin/env bash
# Pretraining on Slurm: one task per accelerator, on as many nodes as asked for.
#
#   sbatch slurm/pretrain.sh                                              # the quick start, on one node
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 slurm/pretrain.sh --ds_config zero3.json --recipe llama-8b
#   sbatch --nodes=2 --ntasks-per-node=4 slurm/pretrain.sh …              # without GPUs
#
# The tasks are named beside the GPUs because a job without them is given one core a node: too few to start a rank for
# each GPU. Where the cluster gives cores with GPUs (DefCpuPerGPU), or with --exclusive, --gpus-per-node=8 is enough.
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

nodes=${SLURM_JOB_NUM_NODES:-1}
if [ -n "${SLURM_NTASKS:-}" ]; then
    # --ntasks or --ntasks-per-node was given: srun inherits it and how Slurm laid the tasks out.
    layout=(--ntasks="$SLURM_NTASKS")
else
    # One task an accelerator, else one a node. What was asked for (8, a100:8) comes first: with --exclusive the node has
    # more, but srun shows the tasks only these.
    gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
    tasks=${gpus##*:}
    cores=$((tasks * ${SLURM_CPUS_PER_TASK:-1}))
    if [ "$cores" -gt "${SLURM_CPUS_ON_NODE:-$cores}" ]; then
        echo "pretrain.sh: $tasks ranks a node need $cores cores, and the job was given $SLURM_CPUS_ON_NODE:" \
            "add --ntasks-per-node=$tasks to sbatch" >&2
        exit 2
    fi
    layout=(--nodes="$nodes" --ntasks-per-node="$tasks" --ntasks=$((nodes * tasks)))
fi
# Since Slurm 22.05 srun no longer takes sbatch's --cpus-per-task: each task would be bound to one core.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# The code of the task that failed first. srun itself tells the highest one: it ends the other tasks as soon as one has
# failed, so a 75 or a 2 becomes their 143 (SIGTERM) whenever they are a tenth of a second behind.
export PRETRAIN_FIRST_CODE="$root/.pretrain-$SLURM_JOB_ID.code"
rm -f "$PRETRAIN_FIRST_CODE"
# set -C: only the first task can make the file. The trap keeps the shell waiting when a signal comes for its python.
# 143: it was ended (scancel ends this script too, which could then not remove the file).
# shellcheck disable=SC2016
task='trap : TERM USR1 USR2
python -u -m launcher.train "$@"
code=$?
[ "$code" -eq 0 ] || [ "$code" -eq 143 ] || (set -C; echo "$code" >"$PRETRAIN_FIRST_CODE") 2>/dev/null
exit "$code"'

# How the ranks meet (the first host of the step, a port from the job's number) they work out by themselves:
# launcher/cluster/rank.py. OMP_NUM_THREADS is left alone: each rank takes its share of the node's cores.
echo "pretrain.sh: job $SLURM_JOB_ID, $nodes nodes, srun ${layout[*]}: python -m launcher.train $*"
srun "${layout[@]}" --kill-on-bad-exit=1 \
    bash -c "$task" task "$@"
code=$?
# Without the file no task failed by itself: all are done, or a node or the job was lost, and srun's code says it.
[ ! -s "$PRETRAIN_FIRST_CODE" ] || code=$(cat "$PRETRAIN_FIRST_CODE")
rm -f "$PRETRAIN_FIRST_CODE"

# 75: stopped on the way, the same command goes on from the last checkpoint. Anything else is the job's own result.
if [ "$code" -eq 75 ]; then
    echo "pretrain.sh: the run asks to go on: requeued"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
