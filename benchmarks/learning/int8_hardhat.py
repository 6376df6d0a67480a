"""What the 8 bit model loses on the hard-hat test pictures: at most 2 points are allowed.

    python -m benchmarks.learning.int8_hardhat --data DIR              trains as the demo does
    python -m benchmarks.learning.int8_hardhat --data DIR --run RUN    judges a run that is finished

Both files are judged as they would be published, on all 118 test pictures that the three folders hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from apiary.learn import images
from apiary.learn.classifier import Classifier, evaluate
from apiary.learn.metrics import Evaluation
from apiary_cli.datasets.partition import hardhat_layout

ALLOWED = 0.02
FILES = {"float32": "model.tflite", "int8": "model_int8.tflite"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="holds dataset_client1, ..., dataset_server")
    parser.add_argument("--run", type=Path, help="folder of a finished run; unset: train one")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apiary-int8-") as name:
        folder = Path(name)
        run = args.run or train(args.data, args.rounds, folder)
        pictures = hardhat_layout(args.data, folder / "data").server
        found = {kind: judge(run, file, pictures) for kind, file in FILES.items()}
        told: dict[str, Any] = {
            "pictures": found["int8"].count,
            "accuracy": {kind: round(e.accuracy, 4) for kind, e in found.items()},
            "lost": round(found["float32"].accuracy - found["int8"].accuracy, 4),
            "bytes": {kind: (run / file).stat().st_size for kind, file in FILES.items()},
        }
    if args.json:
        print(json.dumps(told))
    else:
        for kind, evaluation in found.items():
            right = round(evaluation.accuracy * evaluation.count)
            size = told["bytes"][kind]
            print(f"{kind:8} {evaluation.accuracy:6.1%}  {right} of {evaluation.count} right  {size} bytes")
        print(f"int8 loses {100 * told['lost']:.1f} points, {100 * ALLOWED:g} are allowed")
    return 0 if told["lost"] <= ALLOWED else 1


def train(data: Path, rounds: int, folder: Path) -> Path:
    command = [sys.executable, "-m", "apiary_cli", "demo", "--dataset", "hardhat", "--data", str(data)]
    command += ["--rounds", str(rounds), "--runs-dir", str(folder / "runs"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(done.stdout.splitlines()[-1])["run"])


def judge(run: Path, file: str, pictures: Path) -> Evaluation:
    classifier = Classifier(run / file)
    labels = (run / "labels.txt").read_text().splitlines()
    return evaluate(classifier, images.load(images.scan(pictures, labels), classifier.input))


if __name__ == "__main__":
    sys.exit(main())
