#!/usr/bin/env bash
# The whole way on the miniature: activations, a k-sparse autoencoder, pictures without a concept.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
config=configs/mini_sd.py
started=$SECONDS

say "1/5 extract: the text encoder's activations, to stores/mini_sd"
python -m extract.run --config $config
say "2/5 train: a k-sparse autoencoder in JAX, to runs/mini_sd"
if [ -d runs/mini_sd/checkpoints ]; then resume=--config.train.resume=True; fi
python -m revelio_jax.train --config $config ${resume:-}
say "3/5 evaluate: on rows it was not trained on"
evaluated=$(python -m revelio_jax.evaluate --config $config | tee /dev/stderr | tail -n 1)
say "4/5 export: to runs/mini_sd/export"
python -m revelio_jax.export --config $config
say "5/5 steer: take 'glossy 3d' out of pictures"
python -m revelio_jax.steering.latents --config $config --concept "style=glossy 3d" | tail -n 1
python -m revelio_jax.steering --config $config --concept "glossy 3d" --strength -2.5,-1.5,-0.5,0

say "done in $((SECONDS - started)) s"
echo "the autoencoder: $evaluated"
echo "the pictures: $PWD/runs/mini_sd/steering/glossy_3d.png"
