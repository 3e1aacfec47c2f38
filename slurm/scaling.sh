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

# sbatch runs a copy of this script from its spool folder: the project is where the job was submitted, or where --chdir
# lets it begin.
: "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch slurm/scaling.sh}"
root=$PWD
[ -f "$root/launcher/train.py" ] || root=$SLURM_SUBMIT_DIR
if [ ! -f "$root/launcher/train.py" ]; then
    [ "$PWD" = "$root" ] || root="$PWD or $root"
    echo "scaling.sh: there is no launcher/train.py in $root: submit from the project's folder, or name it:" \
        "sbatch --chdir=FOLDER" >&2
    exit 2
fi
cd "$root" || exit 2
# Modules, interfaces and containers, as for pretrain.sh. The table is made outside of a container: with one, the host needs
# a python with numpy, pydantic, PyYAML and rich as well.
# shellcheck disable=SC2034
prologue=slurm/prologue.sh
# shellcheck source=slurm/environment.sh
. slurm/environment.sh
forget_other_job
inside=("${container[@]/#/--srun-option=}" "${wrap[@]/#/--before-python=}")
exec python -m launcher.cli scale "$@" "${inside[@]}"
