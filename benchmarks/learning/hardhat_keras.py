"""One client of the hard-hat job as its author ran it: Keras' own fit through the whole frozen network.

    python -m benchmarks.learning.hardhat_keras PICTURES --rounds 6 --epochs 20 --batch 8

Every epoch takes every picture through MobileNetV2 again: the base is frozen, but nothing remembers what it
gave. One thread, so that no processor time goes to waiting threads. Prints a JSON line: processor seconds of
the fits, of each round, and how many pictures trained.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from apiary.learn import images
from apiary.learn.manifest import PictureInput
from apiary_coordinator.recipes import mobilenet_v2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="LABEL/*.jpg")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--base-weights", type=Path)
    args = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras
    import numpy as np

    data = images.load(images.scan(args.pictures), PictureInput(height=160, width=160, channels=3))
    options = mobilenet_v2.Options(weights="imagenet" if args.base_weights else "random")
    parts = mobilenet_v2.build(options, len(data.labels), base_weights=args.base_weights, seed=0)
    model = keras.Sequential([parts.base, parts.trained])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    # Shuffled once: Keras takes the last fifth for validation, and the pictures lie label by label.
    order = np.random.default_rng(0).permutation(len(data))
    x, y = data.floats(order), data.y[order]
    seconds = []
    for _ in range(args.rounds):
        before = time.process_time()
        model.fit(x, y, batch_size=args.batch, epochs=args.epochs, validation_split=0.2, verbose=0)
        seconds.append(round(time.process_time() - before, 2))
    print(json.dumps({"fit_s": round(sum(seconds), 2), "rounds_s": seconds, "pictures": len(data)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
