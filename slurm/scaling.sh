#!/usr/bin/env bash
# A scaling test on Slurm: the same recipe on growing numbers of nodes, one after another, in one job.
#
#   sbatch --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 slurm/scaling.sh llama-8b --sizes 1,2,4,8 --weak
#
# Submit from the project's folder. Everything behind the script goes to `pretrain scale`; sizes are nodes. Every size drops
# its warm-up and times 20 steps or more; the table (JSON, CSV, Markdown) and the picture lie in scaling/RECIPE.
# Edit these lines, or give the same options to sbatch:
#SBATCH --job-name=scaling
##SBATCH --time=4:00:00
##SBATCH --partition=gpu
##SBATCH --account=…
set -uo pipefail

root=${SLURM_SUBMIT_DIR:?this is a batch script: sbatch slurm/scaling.sh}
if [ ! -f "$root/launcher/train.py" ]; then
    echo "scaling.sh: there is no launcher/train.py in $root: submit from the project's folder" >&2
    exit 2
fi
cd "$root" || exit 2
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi
# Modules and interfaces, as for pretrain.sh; its containers are not used here.
if [ -f slurm/prologue.sh ]; then
    # shellcheck disable=SC1091
    . slurm/prologue.sh
fi
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Since Slurm 22.05 srun no longer takes sbatch's --cpus-per-task: each task would be bound to one core.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
exec python -m launcher.cli scale "$@"
