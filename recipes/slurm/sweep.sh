#!/bin/bash
# A sweep as job arrays of Slurm: every pretraining, then every fine-tuning, then the comparison.
#   bash recipes/slurm/sweep.sh SWEEP RUN_DIR [options of sbatch, such as --gres=gpu:1 --cpus-per-task=9 --time=8:00:00]
# RUN_DIR is the sweep's run_dir; it and the shards lie where all nodes see them. Called again, it goes on.
set -euo pipefail
sweep=${1:?which sweep?}
run_dir=${2:?which run_dir has it?}
shift 2

# Everything is checked here, before anything waits in a queue.
ssamba sweep "$sweep" --prepare --resume auto

before=()
for stage in pretrain finetune; do
  list=$run_dir/recipes/$stage.txt
  [ -f "$list" ] || continue
  points=$(wc -l < "$list")
  # A run gets USR1 two minutes before its time is up, saves itself and puts its job back into the queue. Any name but
  # "bash": by that Lightning knows a shell.
  job=$(sbatch --parsable "$@" "${before[@]}" --job-name="ssamba-$stage" --array="0-$((points - 1))" --ntasks=1 \
    --signal=USR1@120 --requeue --open-mode=append --output="$run_dir/%x-%a.log" --wrap \
    "srun ssamba $stage \"\$(sed -n \"\$((SLURM_ARRAY_TASK_ID + 1))p\" '$list')\" --resume auto")
  # One that fails does not keep the others back: what starts from it fails with its reason.
  before=(--dependency="afterany:$job")
done
sbatch --parsable "${before[@]}" --job-name=ssamba-compare --output="$run_dir/%x.log" --wrap \
  "ssamba sweep '$sweep' --resume auto"
