"""Pictures to probabilities with an `.eim` program that may crash or hang, and is then started again."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apiary.eim import protocol
from apiary.eim.protocol import Classified, EimModel
from apiary.errors import DataError, EimError
from apiary.process.confinement import Kernel
from apiary_edge.eim.process import Process
from apiary_edge.eim.shared_memory import Mapped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EimLimits:
    """Bounds of every wait, and of starting again: `restarts` in a row, each pause twice the last."""

    start_s: float = 20.0
    hello_s: float = 20.0
    classify_s: float = 10.0
    stop_s: float = 2.0
    restarts: int = 5
    pause_s: float = 1.0
    pause_max_s: float = 60.0


class EimRunner:
    """One program. Not thread-safe. `labels` are those the program must have, in any order.

    It runs confined (`apiary.process.confinement`): beside a folder of its own it may change `writable`.

    A failed classification ends the program. The next one starts it again when the pause is over and raises
    EimError until then; after `limits.restarts` failures in a row it gives up until `start` is called.
    """

    def __init__(
        self,
        program: Path,
        *,
        labels: Sequence[str] | None = None,
        limits: EimLimits | None = None,
        writable: Sequence[Path] = (),
        kernel: Kernel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._program = program
        self._labels = labels
        self._limits = limits or EimLimits()
        self._clock = clock
        self._writable = writable
        self._kernel = kernel
        self._process: Process | None = None
        self._mapped: Mapped | None = None
        self._model: EimModel | None = None
        self._failures = 0
        self._not_before = 0.0
        self._why = ""

    def start(self) -> EimModel:
        """Start it, forgetting earlier failures; what it says of its model. Raises EimError."""
        self._failures = 0
        self._not_before = 0.0
        self.close()
        return self._open()

    def classify(self, picture: NDArray[np.uint8]) -> Classified:
        """Classify uint8[H, W, 3 or 1] of any size, resized as the model was trained.

        Raises DataError for what is no picture, EimError for what the program does wrong.
        """
        if picture.ndim != 3 or picture.shape[2] not in (1, 3) or picture.dtype != "uint8":
            raise DataError(
                f"a picture of {picture.dtype}{list(picture.shape)}, expected uint8[height, width, 1 or 3]"
            )
        model = self._model if self._process is not None and self._model is not None else self._again()
        features = protocol.pack(fit(picture, model))
        try:
            result = self._ask(features, model)
        except EimError as e:
            self._failed(e)
            raise
        self._failures = 0
        return result

    def close(self) -> None:
        """End the program and remove what it left."""
        process, self._process, self._mapped = self._process, None, None
        if process is not None:
            process.close()

    def __enter__(self) -> EimRunner:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def _again(self) -> EimModel:
        if self._failures > self._limits.restarts:
            raise EimError(
                f"{self._program.name} failed {self._failures} times in a row and is not started again; "
                f"the last: {self._why}"
            )
        if (left := self._not_before - self._clock()) > 0:
            raise EimError(f"{self._program.name} is started again in {left:.1f} s; it failed: {self._why}")
        return self._open()

    def _open(self) -> EimModel:
        limits = self._limits
        try:
            process = self._process = Process(
                self._program,
                start_s=limits.start_s,
                stop_s=limits.stop_s,
                writable=self._writable,
                kernel=self._kernel,
            )
            number = process.next_number()
            model = protocol.read_hello(process.ask(protocol.hello(number), limits.hello_s))
            if self._labels is not None and set(model.labels) != set(self._labels):
                raise EimError(
                    f"{self._program.name} has the labels {', '.join(model.labels)[:200]}, "
                    f"expected {', '.join(self._labels)[:200]}"
                )
            if model.shared_memory is not None:
                # Without it the same features go through the socket, only slower.
                with contextlib.suppress(EimError):
                    self._mapped = process.share(model.shared_memory)
        except EimError as e:
            self._failed(e)
            raise
        self._model = model
        return model

    def _ask(self, features: NDArray[np.uint32], model: EimModel) -> Classified:
        process = self._process
        assert process is not None  # noqa: S101 - opened before
        number = process.next_number()
        if self._mapped is not None:
            # 24 bits of a packed pixel fit float32 exactly.
            self._mapped.write(features.astype("<f4").tobytes())
            request = protocol.classify_shared(len(features), number)
        else:
            request = protocol.classify(features.tolist(), number)
        return protocol.read_result(process.ask(request, self._limits.classify_s), model.labels)

    def _failed(self, e: EimError) -> None:
        self._why = str(e)
        self._failures += 1
        pause = min(self._limits.pause_s * 2 ** (self._failures - 1), self._limits.pause_max_s)
        self._not_before = self._clock() + pause
        self.close()
        # Once aloud: a program that always fails would fill the log of a node that nobody watches.
        log.log(
            logging.WARNING if self._failures == 1 else logging.DEBUG,
            "eim=%s failures=%d pause_s=%.1f %s",
            self._program.name,
            self._failures,
            pause,
            e,
        )


def fit(picture: NDArray[np.uint8], model: EimModel) -> NDArray[np.uint8]:
    """The picture in the model's size and channels, resized as the model says. Raises DataError."""
    import numpy as np
    from PIL import Image, ImageOps

    size = (model.width, model.height)
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image = image.convert("L" if model.channels == 1 else "RGB")
    how = Image.Resampling.BILINEAR  # as in training (apiary.learn.images)
    if image.size != size:
        match model.resize:
            case "none":
                raise DataError(
                    f"a picture of {image.width}x{image.height}: "
                    f"the model does not resize, it takes {model.width}x{model.height}"
                )
            case "fit-shortest":
                image = ImageOps.fit(image, size, how)
            case "fit-longest":
                scale = min(model.width / image.width, model.height / image.height)
                # Not ImageOps.pad: a picture of extreme sides would become 0 pixels high there.
                inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                bars = Image.new(image.mode, size)
                bars.paste(image.resize(inner, how), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
                image = bars
            case _:
                image = image.resize(size, how)
    return np.asarray(image, np.uint8).reshape(model.height, model.width, model.channels)
