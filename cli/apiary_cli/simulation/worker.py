"""A training process of a simulation: `python -m apiary_cli.simulation.worker FOLDER`.

Reads a `ShareTask` a line from standard input and prints a `ShareOutcome` a line; ends with its input.
"""

import sys
from pathlib import Path

from apiary.errors import ApiaryError
from apiary.learn.runtimes import choose
from apiary_cli.simulation.training import ShareOutcome, ShareTask, ShareTrainer


def main(argv: list[str]) -> int:
    """Work until the input ends."""
    trainer = ShareTrainer(Path(argv[1]), choose())
    for line in sys.stdin.buffer:
        task = ShareTask.model_validate_json(line)
        try:
            outcome = trainer.train(task)
        except ApiaryError as e:
            outcome = ShareOutcome(id=task.id, kind="failed", text=str(e)[:500])
        print(outcome.model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
