"""`python -m apiary_coordinator.export build|finish|read JOB.json`: `job` has the files' schema."""

import os
import sys
import warnings
from pathlib import Path

from apiary.errors import ApiaryError, ExportError
from apiary.learn.runtimes.litert import quiet


def main(arguments: list[str]) -> int:
    """Do one job. A user's error is one line on stderr, `error: ...`, and its exit code."""
    try:
        if len(arguments) != 2 or arguments[0] not in ("build", "finish", "read"):
            raise ExportError("usage: python -m apiary_coordinator.export build|finish|read JOB.json")
        _light_tensorflow()
        from apiary.learn.runtimes.keras import prepare
        from apiary_coordinator.export.job import BuildJob, FinishJob, ReadJob

        task, file = arguments[0], Path(arguments[1])
        jobs: dict[str, type[BuildJob | FinishJob | ReadJob]] = {
            "build": BuildJob,
            "finish": FinishJob,
            "read": ReadJob,
        }
        job = jobs[task].read(file)
        with quiet():  # CUDA's absence is noted before any log level is read
            from apiary_coordinator.export import build

            prepare(1)
        # After TensorFlow, whose absl resets it: that gradients are not saved beside the graph is meant.
        from absl import logging

        logging.set_verbosity(logging.ERROR)
        if task == "build":
            build.build_folder(job)
        elif task == "finish":
            build.finish_folder(job)
        else:
            build.read_folder(job)
    except ApiaryError as e:
        print("error: " + " ".join(str(e).split("\n")), file=sys.stderr, flush=True)
        return e.exit_code
    return 0


def _light_tensorflow() -> None:
    """Quiet, no GPU, one thread: the files must be the same each time, and the machine is shared."""
    for key, value in {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_ENABLE_ONEDNN_OPTS": "0",
    }.items():
        os.environ.setdefault(key, value)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
