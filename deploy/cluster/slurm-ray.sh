#!/bin/bash
# A Ray cluster inside a SLURM job, and an adrec command on it: sbatch deploy/cluster/slurm-ray.sh score --config score.yaml
# All nodes see the working folder and the environment, as is usual on SLURM.
#SBATCH --job-name=adrec
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=04:00:00
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=6379
srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --port="$port" --num-cpus=1 --disable-usage-stats --block &
sleep 15
others=$((SLURM_JOB_NUM_NODES - 1))
srun --nodes="$others" --ntasks="$others" --exclude="$head" \
  ray start --address="$head:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
sleep 15
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" adrec "$@" --cluster "$head:$port"
