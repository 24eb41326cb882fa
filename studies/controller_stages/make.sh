#!/bin/sh
# A controller of SGD as it ships: three meta-trainings, each of which begins with the networks of the one before.
# Needs MNIST (qan data --fetch). From the top folder; after a kill the same command goes on:
#
#     sh studies/controller_stages/make.sh SEED FOLDER
set -eu
seed=$1 folder=$2

stage() {
  out=$folder/$1
  shift
  if [ -f "$out/config.json" ]; then qan meta-train --resume "$out"; return; fi
  qan meta-train --seed "$seed" --set 'optimizers=["sgd"]' --out "$out" "$@"
}

stage 1 --rounds 160

stage 2 --start "$folder/1" --rounds 40 \
  --set 'networks={"mlp": 0.7, "mlp-norm": 0.2, "mnist-cnn": 0.1}' \
  --set 'batches=[100, 6000]' --set 'train_size=[200, 49000]' --set dataset=mnist \
  --agent-set learning_rate=0.0005 --agent-set initial_log_std=-2.3

stage 3 --start "$folder/2" --rounds 50 --rows 384 \
  --set 'networks={"mlp": 0.8, "mlp-norm": 0.16, "mnist-cnn": 0.04}' \
  --set 'batches=[100, 8000]' --set 'train_size=[200, 49000]' --set dataset=mnist \
  --agent-set learning_rate=0.0005 --agent-set initial_log_std=-1.9
