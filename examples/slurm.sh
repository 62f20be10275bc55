#!/bin/bash
# Two workers of examples/multi_worker.py, one per node: sbatch examples/slurm.sh  (from the repository's folder)
#
# What was tried: shellcheck; and this script for real with stand-ins for srun and scontrol that start two processes on
# loopback, pass SIGTERM on and write down what was requeued (tests/examples/test_slurm.py). What was not: Slurm. There
# was none, so --signal, --requeue, the nodes' names and their network have not run.
#
#SBATCH --job-name=digits
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
#SBATCH --open-mode=append
#
# --signal: SIGTERM goes to the workers 90 seconds before the time is up; they save together and leave with 75.
# --requeue: where a node fails or the job is preempted, Slurm itself puts it back into the queue.

set -u
CHECKPOINT_URL="${CHECKPOINT_URL:-$PWD/runs/digits}" # on a file system that all nodes share, or s3://…, gs://…
PYTHON="${PYTHON:-.venv/bin/python}"
MAX_RESTARTS=20 # a worker that crashes by itself looks like this, too: its peers end with 74

# scontrol knows how node[01-03,07] is written out. One port for each job, so that two jobs may share a node.
WORKER_HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
WORKER_PORT="${WORKER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
export WORKER_HOSTS WORKER_PORT

# Workers notice within some ten seconds that another is gone, and leave by themselves: srun does not kill them at once
# for that, but a minute after the first has ended.
srun --kill-on-bad-exit=0 --wait=60 \
  "$PYTHON" -m examples.tf_config "$PYTHON" -m examples.multi_worker --url "$CHECKPOINT_URL" "$@"
code=$? # the highest of all workers'

case $code in
  74 | 75 | 137) # another worker is gone; told to leave, and saved; killed: all start again from the newest checkpoint
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ]; then
      echo "ended with $code: back into the queue"
      scontrol requeue "$SLURM_JOB_ID"
      exit 0
    fi
    echo "ended with $code, and has been restarted $SLURM_RESTART_COUNT times: that is enough"
    ;;
  76) echo "another job has taken $CHECKPOINT_URL over: not started again" ;;
esac
exit "$code"
