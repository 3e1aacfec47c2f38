#!/usr/bin/env bash
# Text to shards on Slurm: each task of an array builds its share of the parts, on all cores it is given, and the task
# that finds all parts finished completes the folder. Nothing is copied: what a task writes is what is trained on.
#
#   sbatch --array=0-15 slurm/prepare.sh 'wiki/*.jsonl.zst' --tokenizer data/tok --out data/wiki/shards
#   sbatch slurm/prepare.sh corpus.jsonl --tokenizer data/tok --out data/shards            # one machine
#
# The same command again builds what is left: of a task that was killed, a node that was lost. The folder must lie on a
# file system that all nodes see. Submit from the project's folder; everything behind the script goes to `pretrain prepare`.
#SBATCH --job-name=prepare
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

# sbatch runs a copy of this script from its spool folder: the project is where the job was submitted, or where --chdir
# lets it begin.
: "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch slurm/prepare.sh}"
root=$PWD
[ -f "$root/launcher/cli.py" ] || root=$SLURM_SUBMIT_DIR
if [ ! -f "$root/launcher/cli.py" ]; then
    [ "$PWD" = "$root" ] || root="$PWD or $root"
    echo "prepare.sh: there is no launcher/cli.py in $root: submit from the project's folder, or name it:" \
        "sbatch --chdir=FOLDER" >&2
    exit 2
fi
cd "$root" || exit 2
RESTARTS=${PRETRAIN_RESTARTS:-5} BACKOFF_S=${PRETRAIN_BACKOFF_S:-10}
for number in RESTARTS BACKOFF_S; do
    if ! [[ ${!number} =~ ^(0|[1-9][0-9]{0,8})$ ]]; then
        echo "prepare.sh: PRETRAIN_$number '${!number}' is no whole number" >&2
        exit 2
    fi
done

# Modules of the prologue; a container's words before python count, options of srun have no use here.
# shellcheck disable=SC2034
prologue=slurm/prologue.sh
# shellcheck source=slurm/environment.sh
. slurm/environment.sh
forget_other_job

# Tasks are numbered from 0 here, whatever the array counts from; its step is 1 unless somebody says otherwise.
task=$(((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0}) / ${SLURM_ARRAY_TASK_STEP:-1}))
tasks=$(((${SLURM_ARRAY_TASK_MAX:-0} - ${SLURM_ARRAY_TASK_MIN:-0}) / ${SLURM_ARRAY_TASK_STEP:-1} + 1))
# Of an array with holes nobody would build the parts of the tasks that are not there.
if [ "${SLURM_ARRAY_TASK_COUNT:-$tasks}" -ne "$tasks" ]; then
    echo "prepare.sh: the array's $SLURM_ARRAY_TASK_COUNT tasks do not follow one another: submit it as 0-N; the parts that" \
        "are finished are kept, whatever its number of tasks" >&2
    exit 2
fi
echo "prepare.sh: job ${SLURM_JOB_ID:-?}, task $task of $tasks: pretrain prepare $*"
"${wrap[@]}" python -m launcher.cli prepare "$@" --task "$task" --tasks "$tasks"
code=$?

# 75: the file system or a hub refused; the same command goes on from the parts that are finished.
life=${SLURM_RESTART_COUNT:-0}
if [ "$code" -eq 75 ] && [ "$life" -ge "$RESTARTS" ]; then
    echo "prepare.sh: given up after $((life + 1)) lives (PRETRAIN_RESTARTS): mend it, and submit the same again" >&2
elif [ "$code" -eq 75 ]; then
    echo "prepare.sh: requeued"
    # The last task has the number of the whole array, which scontrol would take for all of them.
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
    trap '' TERM # Slurm ends what is left of this life
    scontrol requeue "$job" || exit "$code"
    [ "$life" -eq 0 ] || scontrol update JobId="$job" StartTime="now+$((BACKOFF_S << (life > 6 ? 6 : life)))"
    exit 0
fi
exit "$code"
