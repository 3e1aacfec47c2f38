# Which nodes of a job are at fault, and how it goes on without them. Part of slurm/pretrain.sh, whose names these are: job,
# lives, nodes, asked_nodes, wanted, again, PROBE_S, PRETRAIN_LOGS, say, is_running.
# shellcheck shell=bash disable=SC2154,SC2034

UNFIT_STATES='[*]$|^(down|drain|drng|fail|failg|unk|inval)' # as sinfo's %t tells them; *: it does not answer

joined() { local IFS=,; echo "$*"; }
hosts() { [ -z "$1" ] || scontrol show hostnames "$1"; } # NODELIST → a name a line
of_job() { scontrol show job "$job" | sed -n "s/.* $1=\([^ ]*\).*/\1/p" | grep -vxF '(null)'; } # FIELD → its value

# A node is at fault that Slurm calls down, failing or silent, that starts nothing, or that cannot write to its own disks.
at_fault() { # NODE… → those at fault
    local folder node
    folder=$(mktemp -d "$PRETRAIN_LOGS/probe.XXXXXX") || return
    sinfo -h -N -n "$(joined "$@")" -o '%N %t' | awk -v unfit="$UNFIT_STATES" '$2 ~ unfit {print $1}' >"$folder/told"
    for node in "$@"; do
        # shellcheck disable=SC2016
        if grep -qxF -- "$node" "$folder/told"; then echo "$node"; else
            timeout --kill-after=5 "$PROBE_S" srun --export=ALL --overlap --nodes=1 --ntasks=1 --nodelist="$node" --quiet \
                bash -c 'for place in "${TMPDIR:-/tmp}" /dev/shm; do
                    [ -d "$place" ] || place=/tmp # TMPDIR may be a folder of the submitting host alone
                    file=$place/.pretrain-probe-$SLURM_JOB_ID
                    head -c 1048576 /dev/zero >"$file"; code=$?; rm -f "$file"; [ $code -eq 0 ] || exit $code
                done' >/dev/null 2>&1 || echo "$node"
        fi 2>/dev/null &
    done | sort -u
    rm -rf "$folder"
}

# The partition's other nodes must be enough, of those that Slurm can give at all: or the job would wait for ever.
enough_without() { # NODE…
    local left
    left=$(sinfo -h -N -p "${SLURM_JOB_PARTITION:-}" -o '%N %t' | awk -v unfit="$UNFIT_STATES" '$2 !~ unfit {print $1}' |
        sort -u | grep -cvxF -f <(printf '%s\n' "$@"))
    [ "$left" -ge "$asked_nodes" ]
}

# Sets excluded to what the next life does without: what was excluded before and these. Where that leaves too few nodes,
# those that earlier lives excluded come back, for by now they may be mended. Empty, and why, where nothing can be.
choose_excluded() { # NODE…
    local named before
    excluded=() why=''
    named=$(hosts "$(of_job ReqNodeList)")
    mapfile -t excluded < <(printf '%s\n' "$@" | grep -vxF -f <(echo "${named:-/}"))
    if [ ${#excluded[@]} -eq 0 ]; then
        why="$* cannot be done without: the job asks for it by name (--nodelist)"
        return
    fi
    mapfile -t before < <(hosts "$(of_job ExcNodeList)")
    local all=("${before[@]}" "${excluded[@]}") own
    mapfile -t own < <(printf '%s\n' "${before[@]}" | grep -vxF -f <(cut -f5 "$lives" | tr ' ' '\n') | grep .)
    if enough_without "${all[@]}"; then
        excluded=("${all[@]}")
    elif enough_without "${own[@]}" "${excluded[@]}"; then
        excluded=("${own[@]}" "${excluded[@]}")
    else
        why="the partition has too few other nodes to do without $(joined "${all[@]}"): mend them, or the next life may meet them"
        excluded=()
    fi
}

requeue() { # SECONDS NODE…: end this life; the next begins after so many seconds, without these nodes
    local delay=$1 excluded=() why=''
    shift
    is_running || exit 75
    [ $# -eq 0 ] || choose_excluded "$@"
    # Slurm ends this script's whole process group as soon as the job is requeued; the rest must be said first.
    trap '' TERM USR1
    if ! scontrol requeue "$job"; then
        say "it could not be requeued; the same sbatch command goes on from the last checkpoint" >&2
        exit 75
    fi
    if [ -n "$why" ]; then say "$why"; fi
    if [ ${#excluded[@]} -gt 0 ]; then
        scontrol update JobId="$job" ExcNodeList="$(joined "${excluded[@]}")" &&
            say "the next life does without $(joined "${excluded[@]}") (scontrol update JobId=$job ExcNodeList= takes that back)"
    fi
    [ "$delay" -eq 0 ] || scontrol update JobId="$job" StartTime="now+$delay"
    exit 0
}

# With spares the run goes on in place. The node at fault leaves the job, or Slurm would end all of it on its account.
go_on_without() { # NODE…
    local left=() node own
    [ $# -eq 0 ] || say "at fault: $*"
    for node in "${nodes[@]}"; do [[ " $* " == *" $node "* ]] || left+=("$node"); done
    [ ${#left[@]} -ge "$wanted" ] || return 1
    if [ $# -gt 0 ]; then
        own=${SLURMD_NODENAME:-$(of_job BatchHost)}
        [[ " $* " != *" $own "* ]] || return 1 # this script runs there
        (cd "$PRETRAIN_LOGS" && scontrol update JobId="$job" NodeList="$(joined "${left[@]}")" >/dev/null &&
            rm -f "slurm_job_${job}_resize".*) || return 1
        say "$(joined "$@") left the job"
    fi
    nodes=("${left[@]}")
    again=(--overlap) # what a dead node has not given back must not stand in the way
}
