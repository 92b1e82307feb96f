#!/bin/bash
# EfficientNetV2-B0 on ImageNet-21k, the paper's progressive way.
#   sbatch launch/v2_b0_21k.sh [key=value ...]    from any folder; sbatch's own options go before it
#SBATCH --job-name=v2_b0_21k --nodes=2 --ntasks-per-node=8 --gpus-per-node=8
#SBATCH --cpus-per-task=12 --time=2-00:00:00
#SBATCH --requeue --signal=B:USR2@180 --open-mode=append --output=%x-%j.log
root=$(dirname "$0")/..  # inside a job $0 is a copy elsewhere, and SLURM knows the original
if [ ! -f "$root/slurm/job.sh" ]; then
    root=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=||p')
    root=${root%%/launch/v2_b0_21k.sh*}
fi
exec bash "$root/slurm/job.sh" train configs/v2_b0_21k.yaml "$@"
