# Copy to slurm/prologue.sh and keep what your cluster needs: slurm/pretrain.sh reads it before anything starts, in the batch
# script. What is exported here reaches every rank.
# shellcheck shell=bash disable=SC2034

# Modules. The project's .venv is activated behind this file, unless it activates an environment of its own.
#   module purge; module load cuda/12.8 nccl

# Interfaces. By itself every rank takes the one that leads to the first host; NCCL finds InfiniBand by itself.
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5

# A container of pyxis and enroot: further options of srun. The project's folder must be inside under the same path.
#   container=(--container-image=/images/pytorch.sqsh --container-mounts="$PWD:$PWD" --container-workdir="$PWD")

# A container of apptainer: words before python. In either, python is the container's; the .venv outside is not used.
#   wrap=(apptainer exec --nv --bind "$PWD" /images/pytorch.sif)
