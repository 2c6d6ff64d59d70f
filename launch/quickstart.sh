#!/usr/bin/env bash
# Run all five steps on the small pipeline that ships with the project: extract activations, train a k-sparse
# autoencoder, evaluate it, export it, and remove a concept from images. Rerun safely: finished steps are skipped.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
config=mini_sd
started=$SECONDS

say "1/5 extract: activations of the text encoder -> stores/mini_sd"
revelio extract --config $config
say "2/5 train: a k-sparse autoencoder in JAX -> runs/mini_sd"
resume=()
if [ -d runs/mini_sd/checkpoints ]; then resume=(--config.train.resume=yes); fi
revelio train --config $config "${resume[@]}"
say "3/5 evaluate: on held-out rows"
evaluated=$(revelio evaluate --config $config | tee /dev/stderr | tail -n 1)
say "4/5 export -> runs/mini_sd/export"
revelio export --config $config
say "5/5 steer: remove the style 'glossy 3d' from images"
revelio learn --config $config --concept "style=glossy 3d" | tail -n 1
revelio steer --config $config --concept "glossy 3d" --strength -1.5,-1,-0.5,0

say "done in $((SECONDS - started)) s"
echo "autoencoder: $evaluated"
echo "images: $PWD/runs/mini_sd/steering/glossy_3d.png"
