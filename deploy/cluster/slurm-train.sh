#!/bin/bash
# Training on several machines of a SLURM cluster: sbatch deploy/cluster/slurm-train.sh finetune.yaml
# The config says training.nodes: 4 and training.devices: 8, as below. `output` lies on a disk that all nodes see.
#SBATCH --job-name=adrec-train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A lost process costs the steps since the last checkpoint (training.checkpoint_minutes): all start again from there.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # without it torchrun never lets a machine in that was lost and came back
srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=8 --max-restarts=10 \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:29500" \
  -m adrec finetune --config "$1" --set training.nodes="$SLURM_JOB_NUM_NODES" --set training.devices=8
