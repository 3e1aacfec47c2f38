#!/usr/bin/env bash
# Pretraining on Slurm: one task an accelerator, on as many nodes as asked for, until the run has all its steps.
#
#   sbatch slurm/pretrain.sh                                              # the quick start, on one node
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 slurm/pretrain.sh llama-8b train.num_steps=50000
#   sbatch --nodes=2 --ntasks-per-node=4 slurm/pretrain.sh gpt2 --ds_config zero2.json          # without GPUs
#   sbatch --nodes=5 --ntasks-per-node=8 --gpus-per-node=8 slurm/pretrain.sh --spares 1 llama-8b  # 4 nodes and a spare
#
# The tasks are named beside the GPUs because a job without them is given one core a node: too few to start a rank for
# each GPU. Where the cluster gives cores with GPUs (DefCpuPerGPU), or with --exclusive, --gpus-per-node=8 is enough.
#
# Submit from the project's folder. First come this script's own options:
#   --spares N       the last N nodes wait until one of the others fails; the run goes on without a new place in the queue
#   --prologue FILE  shell that is read first (default: slurm/prologue.sh, if it is there; see prologue.example.sh)
# then RECIPE (a name or a path), then anything that launcher/train.py takes; --ds_config is zero3.json unless it is given.
#
# What ends the job and what does not:
#   0       all steps are done and the model is exported
#   75      stopped on the way (the time limit, a lost rank or node, a full disk): requeued, without the nodes that are
#           at fault; after PRETRAIN_RESTARTS lives in a row that left no new checkpoint it is given up
#   2, 1    a mistake in recipe, data or command, or a fault of the program: another start would end the same way
#
# ─── defaults: edit them, or give the same options to sbatch ─────────────────────────────────────────────────────────
#SBATCH --job-name=pretrain
#SBATCH --nodes=1
##SBATCH --ntasks-per-node=8
##SBATCH --gpus-per-node=8
##SBATCH --time=24:00:00
##SBATCH --partition=gpu
##SBATCH --account=…
# Two minutes before the limit the ranks are told to save; then the job is requeued.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
# A requeued job writes on where its last life stopped.
#SBATCH --open-mode=append

RESTARTS=${PRETRAIN_RESTARTS:-5}     # lives in a row without a new checkpoint
BACKOFF_S=${PRETRAIN_BACKOFF_S:-10}  # wait before the second of them, doubled for each further one, at most 10 minutes
PROBE_S=${PRETRAIN_PROBE_S:-60}      # a node that does not answer within this is at fault
LINGER_S=${PRETRAIN_LINGER_S:-60}    # after the first failed rank: srun would wait for a dead node until Slurm gives it up
CHECK=${PRETRAIN_CHECK:-1}           # pretrain check over all nodes before a life: 1, 0, or its options: '--wait 300'
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
set -uo pipefail

say() { echo "pretrain.sh: $*"; }
refuse() {
    say "$*" >&2
    exit 2
}

# sbatch runs a copy of this script from its spool folder: the project is where the job was submitted, or where --chdir
# lets it begin.
: "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch slurm/pretrain.sh}"
root=$PWD
[ -f "$root/launcher/train.py" ] || root=$SLURM_SUBMIT_DIR
if [ ! -f "$root/launcher/train.py" ]; then
    [ "$PWD" = "$root" ] || root="$PWD or $root"
    refuse "there is no launcher/train.py in $root: submit from the project's folder, or name it: sbatch --chdir=FOLDER"
fi
cd "$root" || exit 2
for number in RESTARTS BACKOFF_S PROBE_S LINGER_S; do
    [[ ${!number} =~ ^(0|[1-9][0-9]{0,8})$ ]] || refuse "PRETRAIN_$number '${!number}' is no whole number"
done

# ─── this script's words ─────────────────────────────────────────────────────────────────────────────────────────────
spares=0 prologue=slurm/prologue.sh
while :; do
    case ${1:-} in
    --spares=* | --prologue=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue
        ;;
    --spares)
        spares=${2:-}
        [[ $spares =~ ^(0|[1-9][0-9]*)$ ]] || refuse "--spares '$spares' is no number of nodes"
        ;;
    --prologue)
        prologue=${2:-}
        [ -f "$prologue" ] || refuse "the prologue '$prologue' is not there"
        ;;
    *) break ;;
    esac
    shift 2
done
case ${1:-} in
'' | -* | *=*) ;;
*) set -- --recipe "$@" ;;
esac
for word in "$@"; do
    case $word in
    --spares | --spares=* | --prologue | --prologue=*) refuse "$word stands before the recipe: slurm/pretrain.sh $word … RECIPE" ;;
    esac
done
[[ " $* " == *" --ds_config"[\ =]* ]] || set -- --ds_config zero3.json "$@"

# ─── the environment of every rank ───────────────────────────────────────────────────────────────────────────────────
# shellcheck source=slurm/environment.sh
. slurm/environment.sh
# shellcheck source=slurm/nodes.sh
. slurm/nodes.sh
forget_other_job
[ -z "${SLURM_HET_SIZE:-}" ] || refuse "a job of $SLURM_HET_SIZE different parts cannot be one run: submit it without ':'"
own_port=${MASTER_PORT:-}
# Training asks nobody outside and reports to nobody.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1

# As one of an array: its last task has the number of the whole array, which scontrol would take for all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
life=${SLURM_RESTART_COUNT:-0}
export PRETRAIN_LOGS="${PRETRAIN_LOGS:-$root/logs/pretrain-$job}"
mkdir -p "$PRETRAIN_LOGS" || {
    say "the folder of the logs cannot be made (PRETRAIN_LOGS): where it may be, or has room, the same sbatch command goes on" >&2
    exit 75
}
lives=$PRETRAIN_LOGS/lives.tsv # a line a life: when it ended, exit code, newest checkpoint before and after, nodes at fault

# ─── nodes and tasks ─────────────────────────────────────────────────────────────────────────────────────────────────
mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST:-}")
[ ${#nodes[@]} -gt 0 ] || refuse "the job has no nodes: SLURM_JOB_NODELIST is '${SLURM_JOB_NODELIST:-}'"
asked_nodes=${#nodes[@]} # as many as each life is given
wanted=$((asked_nodes - spares))
[ "$wanted" -ge 1 ] || refuse "--spares $spares of ${#nodes[@]} nodes leaves none to run on: ask sbatch for more --nodes"

# --gpus counts those of the whole job, and every step of one node would ask for as many: they become so many a node.
total_gpus=()
if [ -n "${SLURM_GPUS:-}" ]; then
    if [ $((${SLURM_GPUS_ON_NODE:-0} * asked_nodes)) -eq "${SLURM_GPUS##*:}" ]; then
        export SLURM_GPUS_PER_NODE="${SLURM_GPUS_PER_NODE:-$SLURM_GPUS_ON_NODE}"
    elif [ "$spares" -eq 0 ] && [ -n "${SLURM_NTASKS_PER_GPU:-}" ]; then
        total_gpus=(--gpus="$SLURM_GPUS") # the ranks lie as the GPUs do
    else
        refuse "--gpus=$SLURM_GPUS does not say how many of them each of $asked_nodes nodes has (${SLURM_GPUS_ON_NODE:-0} on" \
            "$(hostname)): ask for them with --gpus-per-node=N, and --ntasks-per-node=N"
    fi
    unset SLURM_GPUS
fi

# One task an accelerator, else one a node. What was asked for (8, a100:8) comes first: with --exclusive the node has more,
# but srun shows the tasks only these.
if [ -n "${SLURM_NTASKS:-}" ]; then
    # --ntasks or --ntasks-per-node was given: srun inherits it and how Slurm laid the tasks out.
    ranks=$SLURM_NTASKS
    layout=("${total_gpus[@]}" --ntasks="$ranks")
    per_node=${SLURM_TASKS_PER_NODE%%[,(]*}
    [ "$per_node" -ge "${SLURM_GPUS_ON_NODE:-0}" ] || say "note: $per_node ranks on a node of $SLURM_GPUS_ON_NODE GPUs:" \
        "the others do nothing (--ntasks-per-node=$SLURM_GPUS_ON_NODE)"
    if [ "$spares" -gt 0 ]; then
        [[ $SLURM_TASKS_PER_NODE =~ ^[0-9]+(\(x[0-9]+\))?$ ]] ||
            refuse "with spares every node must have as many tasks ($SLURM_TASKS_PER_NODE): use --ntasks-per-node"
        ranks=$((wanted * per_node))
        layout=(--nodes="$wanted" --ntasks="$ranks" --ntasks-per-node="$per_node")
    fi
else
    gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
    per_node=${gpus##*:}
    [[ $per_node =~ ^[1-9][0-9]*$ ]] || refuse "GPUs a node: '$gpus' is no number: write --gpus-per-node=TYPE:N"
    cores=$((per_node * ${SLURM_CPUS_PER_TASK:-1}))
    [ "$cores" -le "${SLURM_CPUS_ON_NODE:-$cores}" ] || refuse "$per_node ranks a node need $cores cores, and the job" \
        "was given $SLURM_CPUS_ON_NODE: add --ntasks-per-node=$per_node to sbatch"
    ranks=$((wanted * per_node))
    layout=(--nodes="$wanted" --ntasks-per-node="$per_node" --ntasks="$ranks")
fi

# ─── pieces ──────────────────────────────────────────────────────────────────────────────────────────────────────────
# pretrain check on every rank, the spares' as well; leaves the nodes it finds unfit in bad.
check() {
    local shape=("${layout[@]}") unfit=$PRETRAIN_LOGS/unfit words=() code
    [ "$CHECK" = 1 ] || read -ra words <<<"$CHECK"
    [ "$spares" -eq 0 ] || shape=(--nodes=${#nodes[@]} --ntasks=$((${#nodes[@]} * per_node)) --ntasks-per-node="$per_node")
    rm -f "$unfit"
    srun --export=ALL "${again[@]}" "${shape[@]}" --nodelist="$(joined "${nodes[@]}")" --kill-on-bad-exit=0 "${container[@]}" \
        "${wrap[@]}" python -m launcher.probe "$@" "${words[@]}" --exclude-to "$unfit" &
    step=$! # a signal ends it, and does not wait for its rounds
    [ -z "$stopping" ] || kill "-$stopping" "$step" 2>/dev/null
    await "$step" 2>/dev/null
    code=$?
    step=''
    [ -z "$stopping" ] || return
    [ "$code" -ne 2 ] || exit 2 # it has said what is to be mended
    [ ! -s "$unfit" ] || IFS=, read -ra bad <"$unfit"
}

# What a node says before and after a life: a free port and the newest checkpoint. It also checks the recipe, and that
# python there can start the launcher at all: srun's own failures end with 1 as well, so those of python become a 2.
ask() { # NODE WORDS OF launcher/train.py…
    local node=$1
    shift
    # shellcheck disable=SC2016
    timeout --kill-after=5 $((PROBE_S + 60)) srun --export=ALL --overlap --nodes=1 --ntasks=1 --nodelist="$node" --quiet \
        "${container[@]}" bash -c '"$@"; code=$?
            case $code in 1 | 126 | 127) ;; *) exit $code ;; esac
            echo "pretrain.sh: python on $(hostname) cannot start the launcher: make setup makes .venv, or name yours in" \
                "slurm/prologue.sh" >&2
            exit 2' ask "${wrap[@]}" python -m launcher.life --job "$SLURM_JOB_ID" --ranks "$ranks" -- "$@"
}

is_running() {
    local state
    state=$(scontrol show job "$job" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p')
    [ "$state" = RUNNING ] || say "the job is ${state:-not there} already"
    [ "$state" = RUNNING ]
}

# Write down a life that did not come to its end; gives the run up where too many in a row left no new checkpoint, and sets
# delay to the wait before the next.
record() { # CODE BEFORE AFTER NODE…
    local vain doublings
    printf '%s\t%s\t%s\t%s\t%s\n' "$(date -Is)" "$1" "$2" "$3" "${*:4}" >>"$lives"
    vain=$(awk -F'\t' '{n = ($4 > $3) ? 0 : n + 1} END {print n + 0}' "$lives")
    if [ "$vain" -gt "$RESTARTS" ]; then
        say "given up: $vain lives in a row left no checkpoint after step $3; all of them: $lives" >&2
        exit 75
    fi
    delay=0
    doublings=$((vain < 12 ? vain - 2 : 10)) # more would leave the numbers of the shell
    [ "$vain" -lt 2 ] || delay=$((BACKOFF_S << doublings > 600 ? 600 : BACKOFF_S << doublings))
}

# The code of the task that failed first. srun itself tells the highest one: it ends the other tasks as soon as one has
# failed, so a 75 or a 2 becomes their 143 (SIGTERM) whenever they are a tenth of a second behind. Each life has a file of
# its own, those in place too: on a node that was cut off, ranks of the one before may still run, and end in the middle of
# this one.
rm -f "$PRETRAIN_LOGS"/first-code-*
# Rank 0 writes into the job's log as well. set -C: only the first task can make the file. The traps keep shell and tee
# waiting when a signal comes for the python between them. 143: the task was ended (with the job, or for another's sake).
# shellcheck disable=SC2016
task='trap : TERM USR1 USR2
log=$PRETRAIN_LOGS/rank-$(printf %05d "$SLURM_PROCID").log
if [ "$SLURM_PROCID" = 0 ]; then
    "$@" 2>&1 | (trap "" TERM USR1 USR2 INT; exec tee -a "$log")
    code=${PIPESTATUS[0]}
else
    "$@" >>"$log" 2>&1
    code=$?
fi
[ "$code" -eq 0 ] || [ "$code" -eq 143 ] ||
    (set -C; echo "$code $SLURM_PROCID $(hostname)" >"$PRETRAIN_FIRST_CODE") 2>/dev/null
exit "$code"'

# ─── a life ──────────────────────────────────────────────────────────────────────────────────────────────────────────
step='' stopping='' again=()
stop() { # SIGNAL: the ranks finish their step, save, and end with 75; a check ends
    stopping=$1
    say "$1 at $(date +%T): the ranks save"
    [ -z "$step" ] || kill "-$1" "$step" 2>/dev/null
}

# Wait for srun, but not for a node that is gone: what is alive has been ended soon after the first failure.
await() { # PID → code
    local pid=$1 failed_at='' code own
    while :; do
        sleep 1 &
        wait -n "$pid" $! # a signal interrupts it
        code=$?
        kill -0 "$pid" 2>/dev/null || break
        [ -n "$failed_at" ] || [ ! -s "$PRETRAIN_FIRST_CODE" ] || failed_at=$SECONDS
        if [ -n "$failed_at" ] && [ $((SECONDS - failed_at)) -ge "$LINGER_S" ]; then
            say "the step does not end: left behind"
            kill -KILL "$pid"
        fi
    done
    # Where sleep and srun ended together, code is sleep's; 127: srun's was the one that was told.
    wait "$pid" 2>/dev/null
    own=$?
    [ "$own" -eq 127 ] || code=$own
    return "$code"
}

pause() { # SECONDS, unless a signal comes
    local until=$((SECONDS + $1))
    while [ -z "$stopping" ] && [ "$SECONDS" -lt "$until" ]; do sleep 1; done
}

begin_without() { # NODE…: in place, or in the job's next life; then this one counts, too
    go_on_without "$@" && return
    record 75 "$before" "$before" "$@"
    requeue "$delay" "$@"
}

trap 'stop USR1' USR1
trap 'stop TERM' TERM

bad=() before=0 starts=0
[ "$spares" -eq 0 ] || mapfile -t bad < <(at_fault "${nodes[@]}") # one that is dead would keep the check waiting
[ ${#bad[@]} -eq 0 ] || begin_without "${bad[@]}"
while :; do
    chosen=("${nodes[@]:0:$wanted}")
    bad=()
    export PRETRAIN_FIRST_CODE="$PRETRAIN_LOGS/first-code-$life-$((starts += 1))"

    told=$(ask "${chosen[0]}" "$@")
    code=$?
    [ "$code" -ne 2 ] || exit 2 # it has said what is wrong
    read -r port before <<<"${told##*$'\n'}" # a banner of the container's may come first
    before=${before:-0}
    if [ -z "$own_port" ]; then
        # Without an answer the ranks take the port that follows from the job's number.
        if [ -n "$port" ]; then export MASTER_PORT="$port"; else unset MASTER_PORT; fi
    fi
    if [ "$CHECK" != 0 ] && [ -z "$stopping" ]; then # bash told it when the question had been answered
        check "$@"
        CHECK=0
        if [ ${#bad[@]} -gt 0 ]; then
            begin_without "${bad[@]}"
            continue
        fi
    fi
    if [ -n "$stopping" ]; then # this life counts, too: a limit that leaves no time for a step would requeue it for ever
        record 75 "$before" "$before"
        requeue "$delay"
    fi

    # How the ranks meet (the first host of the step, and this port) they work out by themselves: launcher/cluster/rank.py.
    # OMP_NUM_THREADS is left alone: each rank takes its share of the node's cores.
    say "job $job, life $life: $ranks ranks on $(joined "${chosen[@]}"), port ${MASTER_PORT:-of the job}," \
        "from step $before: python -m launcher.train $*"
    srun --export=ALL "${again[@]}" "${layout[@]}" --nodelist="$(joined "${chosen[@]}")" --kill-on-bad-exit=1 "${container[@]}" \
        bash -c "$task" task "${wrap[@]}" python -u -m launcher.train "$@" &
    step=$!
    [ -z "$stopping" ] || kill "-$stopping" "$step" 2>/dev/null
    await "$step" 2>/dev/null # bash would print the whole command of a step that is left behind
    code=$?
    step=''
    first=''
    if [ -s "$PRETRAIN_FIRST_CODE" ]; then
        read -r code first where <"$PRETRAIN_FIRST_CODE"
    elif [ "$code" -ne 0 ]; then
        code=75 # no task failed by itself: a node or the job was lost
    fi
    rm -f "$PRETRAIN_FIRST_CODE"
    [ "$code" -eq 0 ] && exit 0
    if [ -n "$first" ]; then
        say "rank $first on $where ended first, with $code" >&2
        [ "$first" -eq 0 ] || tail -n 20 "$PRETRAIN_LOGS/rank-$(printf %05d "$first").log" >&2
    fi
    # Above 128: ended by a signal (memory, a bus error), which is nobody's mistake in the recipe.
    [ "$code" -eq 75 ] || [ "$code" -gt 128 ] || exit "$code"

    is_running || exit 75 # cancelled, or requeued by somebody else
    [ -n "$stopping" ] || mapfile -t bad < <(at_fault "${nodes[@]}")
    for node in "${nodes[@]}"; do [[ " ${bad[*]-} " == *" $node "* ]] || break; done # one that lives
    after=$(ask "$node" "$@" 2>/dev/null) || after=$before
    record "$code" "$before" "${after##* }" "${bad[@]}"
    if [ -z "$stopping" ] && [ "$spares" -gt 0 ] && go_on_without "${bad[@]}"; then
        pause "$delay"
        [ -n "$stopping" ] || continue
    fi
    say "the run asks to go on: requeued"
    requeue "$delay" "${bad[@]}"
done
