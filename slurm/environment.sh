# What the batch scripts of this folder have in common: the prologue, then the project's own environment. They read it in
# the project's folder, with the prologue's name in $prologue.
# shellcheck shell=bash disable=SC1090,SC1091,SC2154

# What an earlier launch left in the submitting shell must not tell these ranks where they are.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE MASTER_ADDR
container=() # further options of srun, e.g. pyxis' --container-image=…
wrap=()      # words before python, e.g. apptainer exec --nv image.sif

unset VIRTUAL_ENV # the submitting shell's
conda=${CONDA_PREFIX:-}
set +u # modules and conda read variables that nobody set
if [ -f "$prologue" ]; then
    . "$(realpath -- "$prologue")" # a name without a slash would be looked for in PATH first
    cd "$root" || exit 2
fi
# After the modules, one of which may bring a python of its own; not over an environment that the prologue chose.
if [ -f .venv/bin/activate ] && [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_PREFIX:-}" = "$conda" ]; then
    . .venv/bin/activate
fi
set -u
if [ ${#container[@]} -eq 0 ] && [ ${#wrap[@]} -eq 0 ] && ! command -v python >/dev/null; then
    echo "there is no python on $(hostname): make setup makes .venv, or name yours in slurm/prologue.sh" >&2
    exit 2
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Since Slurm 22.05 srun no longer takes sbatch's --cpus-per-task: each task would be bound to one core.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
