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

# Submitted from inside of another job (a shell on a node, the end of a batch script), this one has that job's requests in its
# environment as well, and srun would take them for its own: what Slurm does not know of this job is left out. Likewise the
# other's number in an array, and its lives.
forget_other_job() {
    local told laid_out of_step of_part
    told=$(scontrol show job "$SLURM_JOB_ID") || return 0
    is_of() { # VARIABLE PATTERN: what the job's description says where the variable is its own
        [ -z "${!1:-}" ] || [[ $told =~ $2 ]] || {
            echo "note: $1=${!1} is of the job that this one was submitted from: left out"
            unset "$1"
        }
    }
    # Slurm tells one task a node of a job that named no number as well, but lays out as many as it has cores.
    laid_out=$(tr , '\n' <<<"${SLURM_TASKS_PER_NODE:-}" | awk -F'[(x)]+' '{n += $1 * ($2 ? $2 : 1)} END {print n + 0}')
    [ "$laid_out" = "${SLURM_NTASKS:-}" ] || laid_out=another
    is_of SLURM_NTASKS "NumTasks=$laid_out |NtasksPerN:B:S:C=[1-9]|NtasksPerTRES[=:][1-9]" # older ones write :0 for none
    [ -n "${SLURM_NTASKS:-}" ] || unset SLURM_NPROCS # its older name
    is_of SLURM_NTASKS_PER_NODE 'NtasksPerN:B:S:C=[1-9]'
    is_of SLURM_NTASKS_PER_GPU 'NtasksPerTRES[=:][1-9]'
    is_of SLURM_GPUS 'TresPerJob=[^ ]*gpu'
    is_of SLURM_GPUS_PER_NODE 'TresPerNode=[^ ]*gpu'
    is_of SLURM_GPUS_PER_TASK 'TresPerTask=[^ ]*gpu'
    is_of SLURM_GPUS_PER_SOCKET 'TresPerSocket=[^ ]*gpu'
    is_of SLURM_MEM_PER_NODE 'MinMemoryNode=[1-9]'
    is_of SLURM_MEM_PER_CPU 'MinMemoryCPU=[1-9]'
    is_of SLURM_MEM_PER_GPU 'MemPerTres=[^ ]*gpu'
    is_of SLURM_ARRAY_JOB_ID "ArrayJobId=${SLURM_ARRAY_JOB_ID:-} "
    [ -n "${SLURM_ARRAY_JOB_ID:-}" ] || unset "${!SLURM_ARRAY_@}"
    is_of SLURM_RESTART_COUNT "Restarts=${SLURM_RESTART_COUNT:-} "
    is_of SLURM_HET_SIZE 'HetJobId=[1-9]'
    # What it tells of each of its parts, and by older names: srun would look for this job's hosts among theirs.
    for of_part in "${!SLURM_@}"; do
        if [[ -z ${SLURM_HET_SIZE:-} && $of_part =~ ^SLURM_PACK_SIZE$|_(HET|PACK)_GROUP_[0-9]+$ ]]; then unset "$of_part"; fi
    done
    of_step=("${!SLURM_STEP@}" "${!SLURM_PTY_@}")
    # srun tells these to whatever it starts; cores of the other job would be asked for here, and refused.
    [ -z "${SLURM_STEP_ID:-}" ] || of_step+=(SLURM_DISTRIBUTION "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}")
    unset "${of_step[@]}"
}
