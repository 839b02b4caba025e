# ---- What your site needs. Set it here, or in the environment: JOB_VENV=... sbatch ... -----------
# Modules to load, with spaces between them.
JOB_MODULES=@JOB_MODULES@
# A virtual environment's folder, a conda environment's name, or an Apptainer image: what has Python
# and this project.
JOB_VENV=@JOB_VENV@
JOB_CONDA=@JOB_CONDA@
JOB_CONTAINER=@JOB_CONTAINER@
# Processes of a node; empty: one for each GPU, or one.
JOB_PROCESSES=@JOB_PROCESSES@
# How often a job that was stopped may queue again; 0: never.
MAX_REQUEUES=@MAX_REQUEUES@
# ----------------------------------------------------------------------------------------------

fail() {
    echo "error: $*" >&2
    exit 2
}

# Slurm tells this shell alone that time is short (--signal=B:USR1). The stop file is looked at by
# the run; a signal to its launcher would be lost while that is still importing, or kill it.
asked='' ended='' run_dir=''
ask_to_stop() {
    asked=--asked
    if [ -n "$run_dir" ]; then touch "$run_dir/stop"; fi
}
trap ask_to_stop USR1
# Slurm has decided: scancel, or a preemption, after which it requeues by itself.
trap 'ended=--ended' TERM

if [ -n "$JOB_MODULES" ]; then
    read -ra modules <<<"$JOB_MODULES"
    module load "${modules[@]}" || fail "cannot load the modules $JOB_MODULES"
fi
if [ -n "$JOB_VENV" ]; then
    # shellcheck source=/dev/null
    source "$JOB_VENV/bin/activate" || fail "JOB_VENV=$JOB_VENV is no virtual environment"
fi
if [ -n "$JOB_CONDA" ]; then
    # shellcheck source=/dev/null
    source "$(conda info --base)/etc/profile.d/conda.sh" || fail "no conda for JOB_CONDA=$JOB_CONDA"
    conda activate "$JOB_CONDA" || fail "conda has no environment $JOB_CONDA"
fi
set -o pipefail # without -u: for bash before 4.4, an empty array is unset

within=()
if [ -n "$JOB_CONTAINER" ]; then
    within=(apptainer exec --nv --bind "$PWD" "$JOB_CONTAINER")
fi

# A task of an array is requeued by this name. By SLURM_JOB_ID the last one would take all with it.
job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_JOB_ID-}" ]; then
    job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
fi

# The run's folder, how far the run is, and the arguments to train with, each on a line.
said=$("${within[@]}" python -m launch.slurm_job begin "$job" "$@") || exit
mapfile -t lines <<<"$said"
began_at=${lines[1]} train=("${lines[@]:2}")
mkdir -p "${lines[0]}" || fail "cannot make ${lines[0]}"
rm -f "${lines[0]}/stop"
run_dir=${lines[0]}
if [ -n "$asked" ]; then ask_to_stop; fi

nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
processes=${JOB_PROCESSES:-$((gpus > 0 ? gpus : 1))}
if [ "$gpus" = 0 ]; then
    export ACCELERATE_USE_CPU=true # without it each of several processes would train alone
fi
# Seconds that the launcher leaves the others, to save, when it or one of its ranks is told to end.
# Slurm has limits of its own for that (KillWait, GraceTime).
export PET_SHUTDOWN_TIMEOUT=120
# shellcheck disable=SC2016 # the launcher fills it in
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[rank ${rank}] '
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

taken() { (exec 3<>"/dev/tcp/$first_node/$1") 2>/dev/null; }

# Below the ports that the system gives away by itself, and another one for each job that runs.
choose_port() {
    for ((; tries < 20; tries++)); do
        port=$((20000 + (SLURM_JOB_ID + 487 * tries) % 10000))
        if ! taken "$port"; then return; fi
        echo "port $port of $first_node is taken" >&2
    done
    fail "20 ports of $first_node are taken"
}

launch() {
    local step=(srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0)
    if [ -n "${SLURM_CPUS_PER_TASK-}" ]; then
        step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK") # srun does not take it over by itself
    fi
    step+=("${within[@]}")
    if [ $((nodes * processes)) = 1 ]; then
        step+=(python) # nothing to launch: a signal to the step is one to the run
    else
        # shellcheck disable=SC2016 # each node has a number of its own
        step+=(bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" --log_dir "$0/$SLURM_NODEID" "$@"'
            "$run_dir/logs/$job"
            --multi_gpu --num_machines "$nodes" --num_processes $((nodes * processes))
            --main_process_ip "$first_node" --main_process_port "$port"
            --mixed_precision no --dynamo_backend no
            --tee 3) # a file for each rank, and all of it in the job's log
    fi
    "${step[@]}" -m launch.train "${train[@]}" --resume auto &
    local srun=$!
    wait "$srun"
    while kill -0 "$srun" 2>/dev/null; do # a trap has interrupted the waiting
        wait "$srun"
    done
    wait "$srun" # bash remembers how it ended
}

tries=0 code=1
while :; do
    choose_port
    touch "$run_dir/.launched"
    launch
    code=$?
    # Another job may have taken the port between the look at it and the launch.
    if [ "$code" = 0 ] || [ "$run_dir/status.json" -nt "$run_dir/.launched" ] || ! taken "$port"; then
        break
    fi
    echo "port $port of $first_node was taken at the last moment: trying another one" >&2
    tries=$((tries + 1))
done

# Whether to requeue is decided by what the run wrote: launcher and srun make other codes of its own.
"${within[@]}" python -m launch.slurm_job end "$run_dir" "$began_at" "$code" \
    --max-requeues "$MAX_REQUEUES" ${asked:+"$asked"} ${ended:+"$ended"}
code=$?
if [ "$code" = 75 ]; then
    scontrol requeue "$job"
    code=$?
fi
exit "$code"
