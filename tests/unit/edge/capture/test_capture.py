"""Capture: what frames look like, which are kept, and a loop that outlives its camera and a full disk."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.edge.capture.frames import Frame, blurred, pattern

from apiary.errors import CameraError, SettingsError, StoreError
from apiary.settings import CameraSettings, CaptureSettings, EdgeSettings, StoreSettings
from apiary_edge import hours
from apiary_edge.cameras.base import EndOfFrames, PassedOver
from apiary_edge.capture import perceptual
from apiary_edge.capture.job import CaptureEvent
from apiary_edge.capture.lasting_child import LastingChild
from apiary_edge.capture.perceptual import Looks, distance, looks
from apiary_edge.capture.policy import Backoff, CapturePolicy, FrameVerdict, Region
from apiary_edge.capture.process import SILENT_S, CaptureProcess
from apiary_edge.capture.worker import TROUBLE_PAUSE_S, CaptureLoop, encode
from apiary_edge.samples.store import SampleStore

# -- what a frame looks like


def test_the_hash_stays_under_noise_exposure_and_size_and_differs_between_scenes() -> None:
    rng = np.random.default_rng(0)
    for seed in range(10):
        frame = pattern(seed)
        mine = looks(frame).likeness
        noisy = np.clip(frame + rng.normal(0, 5, frame.shape), 0, 255).astype(np.uint8)
        brighter = np.clip(frame * 1.1, 0, 255).astype(np.uint8)
        larger = np.asarray(Image.fromarray(frame).resize((1280, 960)))
        for same in (noisy, brighter, larger):
            assert distance(mine, looks(same).likeness) <= 4
        assert distance(mine, looks(pattern(seed + 100)).likeness) > 12


def test_the_noise_of_a_plain_wall_is_no_difference() -> None:
    rng = np.random.default_rng(1)
    walls = [looks(np.clip(rng.normal(120, 3, (480, 640, 3)), 0, 255).astype(np.uint8)) for _ in range(5)]
    assert {w.likeness for w in walls} == {0}


def test_sharpness_falls_with_blur_and_does_not_depend_on_the_camera_s_size() -> None:
    frame = pattern(3)
    values = [looks(blurred(frame, r)).sharpness for r in (0, 1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 15 > values[-1]
    large = looks(np.kron(frame, np.ones((4, 4, 1), np.uint8))).sharpness
    assert large == pytest.approx(values[0], rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 640), (480, 1), (7, 9), (3, 3000)])
def test_frames_of_any_size_have_looks(shape: tuple[int, int]) -> None:
    found = looks(np.full((*shape, 3), 90, np.uint8))
    assert found.likeness == 0 and found.sharpness == pytest.approx(0, abs=1e-3)
    assert found.brightness == pytest.approx(90, abs=0.5)


def test_grey_is_luma_averaged_over_blocks() -> None:
    frame = np.zeros((4, 640, 3), np.uint8)
    frame[..., 1] = np.tile([0, 200], 320)
    assert perceptual.small_grey(frame) == pytest.approx(np.full((2, 320), 100 * 150 / 256))


def test_real_pictures_are_sharp_enough_and_blurred_ones_are_not(shared_data: Path) -> None:
    paths = sorted((shared_data / "hardhat" / "dataset_client1").rglob("*.jp*g"))[:40]
    if not paths:
        paths = sorted((shared_data / "hardhat" / "dataset_client1").rglob("*.png"))[:40]
    kept = dropped = 0
    for path in paths:
        frame = np.asarray(Image.open(path).convert("RGB").resize((640, 480)))
        kept += CapturePolicy(CaptureSettings()).judge(looks(frame)) is FrameVerdict.KEEP
        dropped += CapturePolicy(CaptureSettings()).judge(looks(blurred(frame, 8))) is FrameVerdict.BLURRED
    assert kept >= 0.95 * len(paths) > 0 and dropped == len(paths)


# -- which are kept

GOOD = Looks(likeness=0, sharpness=100, brightness=100, white=0)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (GOOD, FrameVerdict.KEEP),
        (Looks(0, 15.0, 16.0, 0.8), FrameVerdict.KEEP),
        (Looks(0, 14.9, 100, 0), FrameVerdict.BLURRED),
        (Looks(0, 100, 15.9, 0), FrameVerdict.TOO_DARK),
        (Looks(0, 100, 100, 0.81), FrameVerdict.BURNT_OUT),
    ],
)
def test_a_frame_is_judged_at_each_limit(seen: Looks, verdict: FrameVerdict) -> None:
    assert CapturePolicy(CaptureSettings()).judge(seen) is verdict


def test_near_duplicates_of_the_late_ones_only() -> None:
    policy = CapturePolicy(
        CaptureSettings(near_duplicate_bits=2, near_duplicate_window=2), late=[0b1111_0000, 0, 2**63]
    )
    assert policy.judge(Looks(0b1111_0011, 100, 100, 0)) is FrameVerdict.SEEN
    assert policy.judge(Looks(0b1111_0111, 100, 100, 0)) is FrameVerdict.KEEP
    assert policy.judge(Looks(2**63, 100, 100, 0)) is FrameVerdict.SEEN, "0 is one bit away"
    policy.kept(Looks(2**64 - 1, 100, 100, 0), 0.0)
    assert policy.judge(Looks(1, 100, 100, 0)) is FrameVerdict.KEEP, "0 was the older one of two"
    off = CapturePolicy(CaptureSettings(near_duplicate_bits=-1), late=[0])
    assert off.judge(GOOD) is FrameVerdict.KEEP


def test_due_by_interval_and_hours() -> None:
    policy = CapturePolicy(CaptureSettings(interval_s=30, hours=["08:00-18:00"]))
    assert not policy.due(0.0, 7 * 60 + 59) and policy.due(0.0, 8 * 60)
    policy.judge(GOOD)
    assert policy.due(1.0, 600), "a frame that was only looked at is not kept"
    policy.kept(GOOD, 1.0)
    assert not policy.due(30.9, 600) and policy.due(31.0, 600) and not policy.due(31.0, 18 * 60)


def test_hours_over_midnight_and_those_that_cannot_be_meant() -> None:
    night = hours.parse(["22:00-06:00", " 12:00-12:30 "], "x")
    assert [night.open_at(m) for m in (0, 359, 360, 719, 720, 749, 750, 1319, 1320, 1439)] == [
        True, True, False, False, True, True, False, False, True, True,
    ]  # fmt: skip
    assert hours.parse(["00:00-24:00"], "x").open_at(1439) and hours.Hours().open_at(3)
    for wrong in (
        "8-18",
        "24:00-25:00",
        "08:60-09:00",
        "08:00-08:00",
        "08:00",
        "",
        "08:00-18:00,19:00-20:00",
    ):
        with pytest.raises(SettingsError, match=r"hours: .* expected one such as '08:00-18:00'"):
            hours.parse([wrong], "edge.capture.hours")


def test_a_region_is_part_of_the_frame_and_never_empty() -> None:
    assert Region(0.25, 0.0, 0.5, 1.0).box(640, 480) == (160, 0, 480, 480)
    assert Region().box(3, 1) == (0, 0, 3, 1)
    left, top, right, bottom = Region(0.999, 0.999, 0.001, 0.001).box(10, 10)
    assert (left, top, right, bottom) == (9, 9, 10, 10)
    for wrong in ([0.5, 0, 0.6, 1], [-0.1, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1], [float("nan"), 0, 1, 1]):
        with pytest.raises(SettingsError, match=r"edge.capture.region is .* \[0.25, 0.0, 0.5, 1.0\]"):
            CapturePolicy(CaptureSettings(region=wrong))


def test_pauses_double_up_to_their_bound() -> None:
    backoff = Backoff(10.0)
    assert [backoff.pause() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.pause() == 1


# -- the loop


class Scripted:
    """A camera that plays a list: frames, None, or errors to raise; `open` plays another."""

    name = "scripted"

    def __init__(self, frames: list[object], opens: list[object] = (), *, live: bool = True):  # type: ignore[assignment]  # an empty script
        self.live = live
        self.frames = list(frames)
        self.opens = list(opens)
        self.closed = 0

    def open(self) -> None:
        if self.opens and (said := self.opens.pop(0)) is not None:
            raise CameraError(str(said))

    def frame(self) -> Frame | None:
        said = self.frames.pop(0)
        if isinstance(said, Exception):
            raise said
        return said  # type: ignore[return-value]  # the script is typed loosely

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    made = SampleStore(tmp_path / "samples", tmp_path / "cache", StoreSettings(min_free_mb=0), time.time)
    yield made
    made.close()


class Loop:
    """A capture under a scripted camera and a clock that only waiting moves."""

    def __init__(self, store: SampleStore, camera: Scripted, **settings: object):
        self.now = 100.0
        self.minute = 600
        self.told: list[CaptureEvent] = []
        self.watched: list[Frame] = []
        edge = EdgeSettings(
            camera=CameraSettings(kind="usb", fps=2.0),
            capture=CaptureSettings.model_validate({"interval_s": 0, **settings}),
        )
        self.capture = CaptureLoop(
            edge, camera, store, self.told.append, clock=lambda: self.now, minute=lambda: self.minute
        )

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += self.capture.step()

    def kinds(self) -> list[str]:
        return [t.kind for t in self.told if t.kind != "alive"]


def test_good_frames_become_samples_and_the_others_are_counted(store: SampleStore) -> None:
    black, white = np.zeros((240, 320, 3), np.uint8), np.full((240, 320, 3), 255, np.uint8)
    good = pattern(1)
    camera = Scripted([black, white, blurred(good, 12), None, good, good, pattern(2)])
    loop = Loop(store, camera)
    loop.turn(7)
    assert loop.kinds() == ["back", "kept", "kept"]
    assert loop.capture.dropped == {"too dark": 1, "burnt out": 1, "blurred": 1, "like a late one": 1}
    found = store.page().samples
    assert [s.source for s in found] == ["scripted", "scripted"] and found[0].width == 320
    assert loop.now == pytest.approx(100 + 7 * 0.5), "two frames a second"
    path = store.path(found[1].id)
    assert path is not None
    assert np.abs(np.asarray(Image.open(path)).astype(int) - good).mean() < 6


def test_after_a_restart_what_was_kept_before_is_known(store: SampleStore) -> None:
    Loop(store, Scripted([pattern(1)])).turn()
    again = Loop(store, Scripted([pattern(1), pattern(2)]))
    again.turn(2)
    assert again.capture.dropped == {"like a late one": 1} and again.capture.kept == 1


def test_only_the_region_is_kept_and_judged(store: SampleStore) -> None:
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[:120, 160:] = pattern(1, 160, 120)
    loop = Loop(store, Scripted([frame, frame]), region=[0.5, 0.0, 0.5, 0.5])
    loop.turn(2)
    (sample,) = store.page().samples
    assert (sample.width, sample.height) == (160, 120)


def test_nothing_is_asked_of_a_camera_outside_the_hours_or_the_interval(store: SampleStore) -> None:
    camera = Scripted([pattern(1), pattern(2)])
    loop = Loop(store, camera, interval_s=10, hours=["08:00-18:00"])
    loop.minute = 18 * 60
    loop.turn(5)
    assert len(camera.frames) == 2
    loop.minute = 9 * 60
    loop.turn(20)
    assert len(camera.frames) == 1, "10 s at 2 frames a second are 20 turns"
    loop.turn(2)
    assert loop.capture.kept == 2


def test_a_watcher_sees_every_frame_also_those_not_kept(store: SampleStore) -> None:
    seen: list[Frame] = []
    loop = Loop(store, Scripted([pattern(1), pattern(1), pattern(1)]), interval_s=3600)
    loop.capture._watch = seen.append
    loop.turn(3)
    assert len(seen) == 3 and loop.capture.kept == 1


def test_a_camera_that_goes_is_told_closed_and_tried_again_with_doubling_pauses(store: SampleStore) -> None:
    camera = Scripted(
        [pattern(1), CameraError("scripted: plug"), pattern(2)], [None, "not there", "not there", None]
    )
    loop = Loop(store, camera)
    loop.turn(5)
    assert loop.kinds() == ["back", "kept", "gone", "gone", "gone", "back", "kept"]
    assert [t.retry_s for t in loop.told if t.kind == "gone"] == [1, 2, 4]
    assert loop.told[2].text == "scripted: plug" and camera.closed == 3
    assert loop.now == pytest.approx(100 + 0.5 + 1 + 2 + 4 + 0.5)


def test_a_full_store_or_disk_is_told_and_tried_again_after_a_while(
    store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Scripted([pattern(i) for i in range(400)])
    loop = Loop(store, camera)
    store.bounds = StoreSettings(min_free_mb=10**6)
    loop.turn(10)
    assert loop.kinds() == ["back", "trouble"] and len(camera.frames) == 399
    store.bounds = StoreSettings(min_free_mb=0)

    def fails(_: object) -> object:
        raise StoreError("cannot write: the disk is full; free some space, nothing was lost")

    with monkeypatch.context() as patched:
        patched.setattr(store, "add", fails)
        loop.turn(int(TROUBLE_PAUSE_S * 2))
    assert loop.kinds() == ["back", "trouble", "trouble"] and "the disk is full" in loop.told[-1].text
    loop.turn(int(TROUBLE_PAUSE_S * 2) + 2)
    assert "kept" in loop.kinds()


def test_files_are_taken_without_a_pause_each_of_them_and_end(store: SampleStore) -> None:
    camera = Scripted([*(pattern(i) for i in range(4)), EndOfFrames("the end")], live=False)
    loop = Loop(store, camera, interval_s=3600)
    loop.turn(5)
    assert loop.capture.kept == 4 and loop.capture.ended and loop.now == 100
    assert loop.kinds()[-1] == "ended"


def test_files_that_are_no_pictures_are_counted_and_said_while_they_are_passed_over(
    store: SampleStore,
) -> None:
    camera = Scripted([*(PassedOver("notes.jpg: no picture") for _ in range(90)), pattern(1)], live=False)
    loop = Loop(store, camera)
    for _ in range(91):
        loop.now += 0.1  # what a large file takes to read
        loop.turn()
    alive = [t for t in loop.told if t.kind == "alive"]
    assert len(alive) == 1 and alive[0].dropped["no readable picture"] > 40
    assert loop.capture.dropped == {"no readable picture": 90} and loop.capture.kept == 1
    assert camera.closed == 0, "the camera is there all the time"


def test_the_loop_says_that_it_is_alive(store: SampleStore) -> None:
    loop = Loop(store, Scripted([None] * 100))
    loop.turn(60)
    alive = [t for t in loop.told if t.kind == "alive"]
    assert 4 <= len(alive) <= 6


def test_a_kept_frame_holds_no_metadata() -> None:
    data = encode(pattern(1), 90)
    assert b"Exif" not in data and not Image.open(__import__("io").BytesIO(data)).getexif()


# -- the child


def wait_for(process: CaptureProcess, kind: str, timeout_s: float = 15.0) -> list[CaptureEvent]:
    told: list[CaptureEvent] = []
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        process.tick(time.monotonic())
        told += process.collect()
        if any(t.kind == kind for t in told):
            return told
        time.sleep(0.02)
    raise AssertionError(f"no {kind!r} in {told}")


def edge_settings(tmp_path: Path, source: Path, **camera: object) -> EdgeSettings:
    return EdgeSettings.model_validate(
        {
            "state_dir": tmp_path / "state",
            "camera": {"kind": "folder", "source": str(source), "fps": 20.0, **camera},
            "store": {"min_free_mb": 0},
        }
    )


def test_a_child_captures_from_a_folder_survives_its_going_and_is_restarted(tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(pattern(i)).save(folder / f"{i}.png")
    job = edge_settings(tmp_path, folder)
    process = CaptureProcess(job, lambda: None)
    try:
        wait_for(process, "kept")
        folder.rename(tmp_path / "away")
        gone = wait_for(process, "gone")
        assert any("is its drive still there?" in t.text for t in gone if t.kind == "gone")
        (tmp_path / "away").rename(folder)
        wait_for(process, "back")
        child = process._child
        assert child is not None
        child.process.kill()
        told = wait_for(process, "gone")
        assert any(
            "the capture child was ended by signal 9 (out of memory?); it is started again" in t.text
            for t in told
        )
        wait_for(process, "back")
        store = SampleStore.of_node(job)
        end = time.monotonic() + 15
        while store.counts().unlabelled < 3 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.stop()
    assert process._child is None
    assert store.counts().unlabelled == 3, "the same three, however often they were seen"
    store.close()


class Unwell(LastingChild[CaptureEvent]):
    """A program that ends at once, and says on standard error why."""

    name = "capture"
    module = "json.tool"


def test_a_child_that_ends_by_itself_is_told_with_its_last_words() -> None:
    """Its traceback went nowhere: an owner read `ended with code 1`, again and again."""
    process = Unwell(b"no JSON", 30.0, lambda: None)
    told: list[str] = []
    end = time.monotonic() + 15
    try:
        while not told and time.monotonic() < end:
            process.tick(time.monotonic())
            told += [event.text for event in process.collect()]
            time.sleep(0.02)
    finally:
        process.stop()
    assert told == [
        "the capture child ended with code 1; it is started again: Expecting value: line 1 column 1 (char 0)"
    ]
    assert [t.name for t in threading.enumerate() if t.name.startswith("capture-")] == []


def test_a_child_that_hangs_is_ended_and_one_with_wrong_settings_is_not_started_again(tmp_path: Path) -> None:
    job = edge_settings(tmp_path, tmp_path)
    process = CaptureProcess(job, lambda: None)
    process.tick(0.0)
    child = process._child
    assert child is not None
    limit = SILENT_S + 2 * job.camera.timeout_s
    process.tick(limit + 1)
    assert child.process.returncode is not None, "it is ended, and waited for"
    assert any("was silent for" in t.text for t in process.collect())
    process.stop()
    wrong = CaptureProcess(edge_settings(tmp_path, tmp_path, kind="ubs"), lambda: None)
    told = wait_for(wrong, "failed")
    assert "did you mean 'usb'?" in told[-1].text
    for _ in range(100):
        wrong.tick(time.monotonic())
        if wrong._child is None:
            break
        time.sleep(0.05)
    wrong.tick(time.monotonic() + 10_000)
    assert wrong._child is None
    wrong.stop()


def test_the_service_s_side_loads_nothing_heavy() -> None:
    code = (
        "import sys, apiary_edge.capture.process, apiary_edge.samples.store, apiary_edge.training.census\n"
        "heavy = {'numpy', 'cv2', 'PIL', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
