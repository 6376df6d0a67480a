"""`python -m apiary_coordinator.publishers._sdk`: the child that holds Edge Impulse's SDK. A job on stdin.

It uploads, profiles, builds and downloads, and reports each step as a line of JSON. It has the API key in its
environment and nowhere else.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from apiary_coordinator.publishers._job import (
    Downloaded,
    Event,
    Failed,
    Profile,
    Profiled,
    PublishJob,
    Reached,
    Said,
    Uploaded,
)

_MEMORY_BYTES: Final = 4 * 2**30
"""Of addresses: an endless answer ends this child, not the server."""
_BATCH: Final = 32


class Reporter:
    """Writes events, the key cut out of every text."""

    def __init__(self, out: TextIO, key: str):
        self._out = out
        self._key = key

    def __call__(self, event: Event) -> None:
        """One line, at once."""
        self._out.write(event.model_dump_json().replace(self._key, "(key)") + "\n")
        self._out.flush()


def main() -> int:
    """Do the job on stdin; 0, or 1 after a `Failed`."""
    # The SDK prints as it likes: only events go where the parent reads them.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    key = os.environ["EI_API_KEY"]
    report = Reporter(out, key)
    _bound_memory()
    return serve(PublishJob.model_validate_json(sys.stdin.buffer.read()), report)


def serve(job: PublishJob, report: Reporter) -> int:
    """Do one job; 0, or 1 after a `Failed`."""
    try:
        _do(job, _sdk(job), report)
    except Exception as e:  # the seam between two processes: all becomes a message
        message, retry = _explain(e)
        report(Failed(message=message[:2000], retry=retry))
        return 1
    return 0


def _bound_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _sdk(job: PublishJob) -> Any:
    """The SDK on a bounded transport. Without TensorFlow, which it would load only to know Keras models."""
    for heavy in ("tensorflow", "keras", "pandas", "onnx"):
        sys.modules[heavy] = None  # type: ignore[assignment]  # the documented way to make an import fail
    import edgeimpulse
    from edgeimpulse_api import rest

    from apiary_coordinator.publishers._transport import bounded

    edgeimpulse.API_ENDPOINT = job.publish.api_endpoint
    edgeimpulse.INGESTION_ENDPOINT = job.publish.ingestion_endpoint
    rest.RESTClientObject = bounded(job.publish.request_s, job.publish.max_mb * 2**20)
    return edgeimpulse


def _do(job: PublishJob, ei: Any, report: Reporter) -> None:
    data = job.model.read_bytes()
    if hashlib.sha256(data).hexdigest() != job.sha256:
        raise ValueError(f"{job.model} changed after it was verified: publish again")
    chosen = job.publish
    client = ei.configure_generic_client(key=ei.API_KEY, host=ei.API_ENDPOINT)
    report(Reached(project=ei.default_project_id_for(client)))
    with tempfile.TemporaryDirectory(prefix="apiary-publish-") as folder:
        # A copy: the SDK reads the file twice. Its name must end in .tflite, whatever the SDK would guess.
        model = Path(folder) / job.model.name
        model.write_bytes(data)
        if "profile" not in job.done:
            report(Said(text=f"uploading {model.name} ({len(data)} bytes), estimating for {chosen.device}"))
            answer = ei.model.profile(model=str(model), device=chosen.device, timeout_sec=chosen.job_s)
            numbers = profile_of(answer.to_dict(), chosen.device, chosen.model_type, chosen.engine)
            report(Profiled(profile=numbers))
        if job.samples and "samples" not in job.done:
            report(Said(text=f"uploading {len(job.samples)} held-out test images"))
            report(_upload(job, ei))
        report(Said(text=f"building {chosen.target}, {chosen.model_type}, {chosen.engine}"))
        report(Downloaded(bytes=_build(job, ei, model)))


def _build(job: PublishJob, ei: Any, model: Path) -> int:
    # Pixels 0..255: our models scale inside the graph. Squashed, as in training.
    picture = ei.model.input_type.ImageInput(scaling_range="0..255")
    picture["resizeMode"] = "squash"
    built = ei.model.deploy(
        model=str(model),
        model_output_type=ei.model.output_type.Classification(labels=list(job.labels)),
        model_input_type=picture,
        representative_data_for_quantization=str(job.representative) if job.representative else None,
        deploy_model_type=job.publish.model_type,
        engine=job.publish.engine,
        deploy_target=job.publish.target,
        timeout_sec=job.publish.job_s,
    ).getvalue()
    job.out.write_bytes(built)
    return len(built)


def _upload(job: PublishJob, ei: Any) -> Uploaded:
    """Put the server's test images into the project's test set; what is there already is as good as taken."""
    from edgeimpulse.experimental.data import Sample, upload_samples

    refused: list[str] = []
    for batch in _batches(job.samples, _BATCH):
        samples = [
            Sample(
                filename=f"{hashlib.sha256(s.path.read_bytes()).hexdigest()[:16]}{s.path.suffix.lower()}",
                data=s.path.read_bytes(),
                category="testing",
                label=s.label,
                metadata={"source": "apiary held-out"},
            )
            for s in batch
        ]
        answer = upload_samples(samples, timeout_sec=job.publish.request_s, max_workers=2)
        errors = [str(getattr(fail, "response", fail)) for fail in answer.fails]
        refused += [e for e in errors if "already exist" not in e and "duplicate" not in e.lower()]
    if len(refused) == len(job.samples):
        from apiary_coordinator.publishers._transport import ApiError

        raise ApiError(f"none of {len(refused)} test images was taken: {refused[0][:300]}", retry=True)
    return Uploaded(
        taken=len(job.samples) - len(refused), refused=len(refused), why=refused[0][:300] if refused else ""
    )


def _batches(samples: list[Any], size: int) -> Iterator[list[Any]]:
    for i in range(0, len(samples), size):
        yield samples[i : i + size]


def profile_of(answer: dict[str, Any], device: str, model_type: str, engine: str) -> Profile:
    """The numbers for this device in an answer of `profile`; for boards with Linux they stand under `mpu`."""
    info = (answer.get("model") or {}).get("profileInfo") or {}
    mine = info.get(model_type) or info.get("float32") or info.get("int8") or {}
    memory = (mine.get("memory") or {}).get("eon" if engine == "tflite-eon" else "tflite") or {}
    board = (info.get("table") or {}).get("mpu") or {}
    ms = mine.get("timePerInferenceMs", board.get("timePerInferenceMs"))
    rom = memory.get("rom", board.get("rom"))
    return Profile(
        device=device,
        ram_bytes=memory.get("ram"),
        rom_bytes=int(rom) if rom is not None else None,
        inference_ms=ms,
    )


def _explain(e: Exception) -> tuple[str, bool]:
    """A message for people, and whether the same again may do."""
    if isinstance(e, ImportError):  # before anything of the SDK is imported here
        return f"Edge Impulse's SDK is not installed ({e}): pip install 'apiary-fl[edge-impulse]'", False
    from edgeimpulse import exceptions as known

    from apiary_coordinator.publishers._transport import ApiError

    match e:
        case ApiError():
            return str(e), e.retry
        case known.InvalidDeviceException():
            return (
                f"Edge Impulse knows no device {e.device!r} (publish.device). "
                f"There are: {_listed(e.profile_devices)}",
                False,
            )
        case known.InvalidTargetException():
            return (
                f"this project cannot be built for {e.deploy_target!r} (publish.target). "
                f"There are: {_listed(e.target_names)}",
                False,
            )
        case known.TimeoutException():
            return "a job of Edge Impulse did not end within publish.job_s and was cancelled", True
        case known.EdgeImpulseException():
            words = str(e).split("----------------")  # the SDK frames its own message
            return " ".join(words[1 if len(words) > 1 else 0].split()), False
        case OSError():
            return f"{type(e).__name__}: {e}", True
        case _:
            return f"the SDK failed: {type(e).__name__}: {' '.join(str(e).split())}", False


def _listed(names: list[str]) -> str:
    pis = [n for n in names if "raspberry" in str(n) or "runner-linux" in str(n)]
    rest = [n for n in names if n not in pis]
    return ", ".join(map(str, [*pis, *rest][:20])) + (", ..." if len(names) > 20 else "")


if __name__ == "__main__":
    sys.exit(main())
