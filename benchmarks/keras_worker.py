"""Trains Keras's MobileNet in steps that epoch.py asks for: keras_worker.py NPZ ALPHA THREADS.

Says `ready NAME`, then reads numbers of steps from standard input and answers with the seconds.
"""

import os
import sys
import time


def main() -> None:
    """Serve until standard input ends."""
    batches, alpha, threads = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = threads
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not disturb
    import keras
    import numpy as np

    with np.load(batches) as content:
        images, labels = content["images"], content["labels"]
    model = keras.applications.MobileNet(
        input_shape=images.shape[2:], alpha=alpha, weights=None, classes=10
    )
    model.compile(optimizer=keras.optimizers.Nadam(), loss="sparse_categorical_crossentropy")
    model.train_on_batch(images[0], labels[0])  # compiles
    print(f"ready keras {keras.__version__}, {keras.backend.backend()}", file=answers, flush=True)
    done = 0
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            number = done % len(images)
            loss = model.train_on_batch(images[number], labels[number])
            done += 1
        assert np.isfinite(float(loss)), "the loss is no longer finite"
        print(time.perf_counter() - start, file=answers, flush=True)


main()
