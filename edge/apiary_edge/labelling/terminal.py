"""Labelling in a terminal, also over ssh: the picture in coloured half blocks, a key for each label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from apiary.errors import DataError
from apiary.learn.folder import labels as naming
from apiary_edge.cameras._still import read_file
from apiary_edge.labelling.keys import is_digit, likened, typed
from apiary_edge.samples.model import Filter, Order, Outdated, Sample, SampleId, check_label
from apiary_edge.samples.store import SampleStore

if TYPE_CHECKING:
    from PIL.Image import Image

HELP: Final = "number: label, enter: the suggestion, NAME: new label, s skip, u undo, d delete, q quit"
_AHEAD: Final = 200


def draw(data: bytes, columns: int = 64, rows: int = 24) -> str:
    """A picture as text: two pixels a character, 24 bit colours. Raises DataError."""
    from PIL import Image

    from apiary.learn.modes import plain
    from apiary.learn.sample_files import opened_picture
    from apiary_edge.samples.clean import fit_in_memory

    try:
        with opened_picture(data) as opened:
            opened.draft("RGB", (2 * columns, 4 * rows))
            scale = min(columns / opened.width, 2 * rows / opened.height)
            size = (max(1, round(opened.width * scale)), max(2, round(opened.height * scale) // 2 * 2))
            fit_in_memory(opened)
            small = plain(opened, 3).resize(size, Image.Resampling.BOX)
    except DataError as e:
        raise DataError(f"cannot be shown: {e}") from None
    return "\n".join(_line(small, y) for y in range(0, size[1], 2))


def label_all(
    store: SampleStore,
    who: str,
    ask: Callable[[str], str],
    say: Callable[[str], None],
    *,
    paint: Callable[[str], None],
    known: Sequence[str] = (),
    columns: int = 64,
) -> int:
    """Show pictures without a label, the most uncertain first, until none is left or `q`; how many got one.

    `ask` gives a line for a prompt and raises EOFError at the end, `say` takes text, and `paint` a drawing
    with its control sequences; `known` labels are offered beside the store's own.
    """
    choices = _choices(store, [*known, *store.labels()])
    skipped: set[SampleId] = set()
    done = 0
    say(HELP)
    while (sample := _next(store, skipped)) is not None:
        _show(store, sample, say, paint, columns)
        say(_offer(choices) or "(no label yet: type its name)")
        try:
            answer = ask(_prompt(sample)).strip()
        except EOFError:
            break
        match answer:
            case "q":
                break
            case "s":
                skipped.add(sample.id)
            case "d":
                _delete(store, sample, ask, say)
            case "u":
                done -= _undo(store, who, ask, say)
            case _:
                try:
                    label = _meant(answer, choices, sample)
                    if (other := likened(label, choices)) and not _agreed(
                        ask, f"{other!r} is there: is {label!r} another label? [y/N] "
                    ):
                        label = other
                except DataError as e:
                    say(str(e))
                    continue
                done += _give(store, sample, label, who, ask=ask, say=say)
                choices = _choices(store, [*choices, label])
    return max(0, done)


def _undo(store: SampleStore, who: str, ask: Callable[[str], str], say: Callable[[str], None]) -> int:
    """Take the latest labelling back, another's only if confirmed; how many pictures of `who`'s it was."""
    step = store.latest_step()
    if step is None:
        say("nothing to undo")
        return 0
    own = step.who == who
    if not own and not _agreed(ask, f"the latest labelling is by {step.who}: undo it? [y/N] "):
        return 0
    undone = store.undo(step.number)
    say("something was labelled meanwhile" if undone is None else f"undone: {len(undone.ids)}")
    return len(undone.ids) if undone is not None and own else 0


def _next(store: SampleStore, skipped: set[SampleId]) -> Sample | None:
    offset = 0
    while page := store.page(Filter(labelled=False), Order.UNCERTAIN, limit=_AHEAD, offset=offset).samples:
        for sample in page:
            if sample.id not in skipped:
                return sample
        offset += _AHEAD
    return None


def _give(
    store: SampleStore,
    sample: Sample,
    label: str,
    who: str,
    *,
    ask: Callable[[str], str],
    say: Callable[[str], None],
) -> int:
    """Label what was shown; where somebody else did meanwhile, ask first. How many changed."""
    was = sample.label
    while isinstance(done := store.label_shown({sample.id: was}, label, who), Outdated):
        if not done.samples:
            say("it is gone: deleted meanwhile, nothing was labelled")
            return 0
        theirs = done.samples[0]
        by = theirs.labelled_by or "somebody"
        if not _agreed(ask, f"{by} gave it {theirs.label!r} meanwhile: make it {label!r}? [y/N] "):
            return 0
        was = theirs.label
    return done.changed


def _delete(
    store: SampleStore, sample: Sample, ask: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """Delete what was shown; where somebody else labelled it meanwhile, ask first."""
    was = sample.label
    while isinstance(done := store.delete_shown({sample.id: was}), Outdated):
        theirs = done.samples[0]
        by = theirs.labelled_by or "somebody"
        if not _agreed(ask, f"{by} gave it {theirs.label!r} meanwhile: delete it? [y/N] "):
            say("it was not deleted")
            return
        was = theirs.label


def _agreed(ask: Callable[[str], str], question: str) -> bool:
    try:
        return ask(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _choices(store: SampleStore, labels: Sequence[str]) -> dict[str, str]:
    """Each label with what is typed for it."""
    numbers = store.number_labels(labels)
    found = typed(store.numbers())
    return {label: found[label] for label in numbers}


def _offer(choices: Mapping[str, str]) -> str:
    return "  ".join(label if key == label else f"{key} {label}" for label, key in choices.items())


def _meant(answer: str, choices: Mapping[str, str], sample: Sample) -> str:
    if not answer:
        if sample.suggestion is None:
            raise DataError("there is no suggestion to take: type a number or a name")
        return sample.suggestion.label
    if answer in choices and not is_digit(answer):
        return answer
    if (label := next((one for one, key in choices.items() if key == answer), None)) is not None:
        return label
    if answer.isdecimal():
        raise DataError(f"{answer} is no label's number, expected one of those that are shown")
    if len(answer) == 1:
        raise DataError(f"{answer!r} is no command. {HELP}")
    return check_label(naming.readable(answer))


def _show(
    store: SampleStore,
    sample: Sample,
    say: Callable[[str], None],
    paint: Callable[[str], None],
    columns: int,
) -> None:
    path = store.path(sample.id)
    try:
        if path:
            paint(draw(read_file(path), columns))
        else:
            say("(it is gone)")
    except DataError as e:
        say(f"({e})")
    say(f"{sample.id[:12]}  {sample.source}  {sample.width}x{sample.height}")


def _prompt(sample: Sample) -> str:
    if sample.suggestion is None:
        return "label? "
    return f"label? [{sample.suggestion.label}, {sample.suggestion.probability:.0%}] "


def _line(picture: Image, y: int) -> str:
    cells = []
    for x in range(picture.width):
        upper, lower = (picture.getpixel((x, y + i)) for i in (0, 1))
        assert isinstance(upper, tuple) and isinstance(lower, tuple)  # noqa: S101 - it is RGB
        cells.append(f"\x1b[38;2;{';'.join(map(str, upper))};48;2;{';'.join(map(str, lower))}m▀")
    return "".join(cells) + "\x1b[0m"
