#!/bin/bash
# Rounds on Slurm: the first node holds Ray's head and the training group, the others are the pool for SAM.
#   sbatch --nodes=3 deploy/slurm.sh /shared/runs/first /shared/settings.yaml
# All nodes see the run folder, this repository's environment and $HOME. The same command resumes; Slurm's warning
# before the time limit (SIGTERM) lets the command save its state, and a job stopped so is put into the queue again.
# Never run on a real Slurm: tests/test_deploy.py checks what can be checked without one.
#SBATCH --job-name=stseg
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

run=${1:?the run folder}
settings=${2:?the settings file, such as deploy/settings.yaml}
port=${RAY_PORT:-6379}
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n 1 <<< "$nodes")
others=$((SLURM_JOB_NUM_NODES - 1))
gpus=4
if [ "$others" -lt 1 ]; then
  echo "slurm.sh needs a node for training and one or more for SAM: sbatch --nodes=2 or more" >&2
  exit 2
fi

# A token of this job's own, which only its owner can read: without one, whoever reaches a port of Ray's runs code.
umask 077
token=$HOME/.stseg-token-$SLURM_JOB_ID
python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
trap 'rm -f "$token"' EXIT

srun --nodes=1 --ntasks=1 -w "$head" --overlap \
  ray start --head --block --port="$port" --num-gpus="$gpus" --num-cpus="$SLURM_CPUS_PER_TASK" \
  --resources='{"train": 4}' --dashboard-host=127.0.0.1 &
srun --nodes="$others" --ntasks="$others" --exclude="$head" --overlap bash -c '
  for attempt in $(seq 30); do
    ray start --address="$1" --block --num-gpus="$2" --num-cpus="$3" --resources="{\"sam\": $2}" && exit
    sleep 10   # the head is not up yet
  done
  exit 1' ray "$head:$port" "$gpus" "$SLURM_CPUS_PER_TASK" &
for attempt in $(seq 60); do
  if ray status --address "$head:$port" > /dev/null 2>&1; then break; fi
  sleep 5
done

srun --nodes=1 --ntasks=1 -w "$head" --overlap --export=ALL \
  stseg-pipeline round --n 3 --run "$run" --config "$settings" --address "$head:$port" &
command=$!
trap 'kill -TERM "$command"' TERM
code=0
wait "$command" || code=$?
# A signal ends the first wait; the second one gives the command's own exit code.
if kill -0 "$command" 2> /dev/null; then
  code=0
  wait "$command" || code=$?
fi
trap - TERM
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
