"""`apiary samples`: the pictures of this node: import, list, label, delete, count."""

import argparse
import contextlib
import getpass
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from apiary.errors import DataError, StoreError
from apiary.learn.folder import labels as naming
from apiary_cli.terminal.flags import settings_of
from apiary_cli.terminal.streams import raw
from apiary_cli.terminal.table import table
from apiary_edge.labelling.keys import likened
from apiary_edge.samples.model import MAX_PAGE, Filter, Order, Outdated, Sample, SampleId, SampleState
from apiary_edge.samples.store import SampleStore

EXAMPLES = """examples:
  apiary samples import photos                 photos/cat/1.jpg gets the label cat, photos/2.jpg none
  apiary samples import today --label cat      pictures right in today/ get the label cat
  apiary samples label                         one after the other, in this terminal
  apiary samples label 3fa9c1 77b0e2 --as cat  those that have no label yet
  apiary samples label 3fa9c1 --was dog --as cat
  apiary samples list --state suggested --order uncertain
  apiary samples undo
  apiary samples delete 3fa9c1                 for good: the file and all that was computed from it
  apiary samples stats --json

An id may be shortened while it stays unique. Pictures stay on this machine.
exit codes: 0 done, 3 nothing to import or no such picture, 8 the store or the disk is full: do it again later
"""


_SAY_EVERY_S = 10.0
"""Between two lines of progress where standard error is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags and sub-commands."""
    parser.description = "The pictures of this node: import, list, label, delete, count."
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="import|list|label|undo|delete|stats"
    )
    taking = actions.add_parser("import", help="copy a folder's pictures into the store")
    taking.add_argument("folder", type=Path, help="a folder a label, or pictures: docs/folders.md")
    taking.add_argument("--label", help="label of the pictures that the folder gives none")
    taking.add_argument(
        "--join-labels", action="store_true", help="those that differ in case, blanks or hyphens only are one"
    )
    taking.add_argument("--json", action="store_true", help="end with one JSON line")
    listing = actions.add_parser("list", help="pictures, newest first")
    listing.add_argument("--state", choices=[s.value for s in SampleState], help="only these")
    listing.add_argument("--label", help="only with this label, given or suggested")
    listing.add_argument("--held-out", action="store_true", help="only those that are never trained")
    listing.add_argument("--order", choices=[o.value for o in Order], default="newest", help="newest")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help=f"at most {MAX_PAGE} (20)")
    listing.add_argument("--offset", type=int, default=0, metavar="N", help="leave out the first")
    listing.add_argument("--json", action="store_true", help="a JSON line each")
    giving = actions.add_parser("label", help="give labels; without ids in the terminal, one after the other")
    giving.add_argument("ids", nargs="*", metavar="ID", help="samples")
    giving.add_argument("--as", dest="label", metavar="LABEL", help="their label; '' takes it away")
    giving.add_argument("--was", metavar="LABEL", help="the label that they have by now (none)")
    giving.add_argument(
        "--new-label",
        action="store_true",
        help="though it differs from another in case, blanks or hyphens only",
    )
    actions.add_parser("undo", help="take the latest labelling back")
    removing = actions.add_parser("delete", help="remove pictures for good")
    removing.add_argument("ids", nargs="+", metavar="ID", help="samples")
    removing.add_argument("--was", metavar="LABEL", help="only where this is their label; '': none (any)")
    counting = actions.add_parser("stats", help="how many of what")
    counting.add_argument("--json", action="store_true", help="as one JSON line")
    for action in actions.choices.values():
        action.add_argument(
            "--state-dir", type=Path, metavar="DIR", help="the node's folder (edge.state_dir)"
        )


def run(args: argparse.Namespace) -> int:
    """Run the action. Raises ApiaryError."""
    edge = settings_of(args, edge__state_dir=args.state_dir).edge
    folder = edge.store_dir
    if args.action != "import" and not folder.is_dir():
        raise DataError(
            f"there is no sample store in {folder}: apiary samples import makes one, a node with a camera "
            "does, too; or say where it is: --state-dir (edge.state_dir)"
        )
    with contextlib.closing(SampleStore.of_node(edge)) as store:
        match args.action:
            case "import":
                return _import(store, args, join_labels=edge.join_labels or args.join_labels)
            case "list":
                return _list(store, args)
            case "label":
                return _label(store, args)
            case "undo":
                undone = store.undo()
                print("nothing to undo" if undone is None else f"undone: {len(undone.ids)} of {undone.who}")
            case "delete":
                print(f"deleted: {_delete(store, resolve(store, args.ids), args.was)}")
            case _:
                _stats(store, args.json)
    return 0


def resolve(store: SampleStore, texts: Sequence[str]) -> list[SampleId]:
    """Samples by the beginnings of their ids. Raises DataError for none and for several."""
    ids = []
    for text in texts:
        found = store.find(text)
        if len(found) != 1:
            what = "no sample's id begins" if not found else "several samples' ids begin"
            raise DataError(f"{what} with {text!r}; see apiary samples list")
        ids += found
    return ids


def _import(store: SampleStore, args: argparse.Namespace, *, join_labels: bool) -> int:
    from apiary_edge.labelling import folder

    contents = folder.look(store, args.folder, join_labels=join_labels)
    total = folder.count(contents.layout)
    for line in contents.layout.understood:
        print(f"understood: {line}", file=sys.stderr)
    warnings = [w for w in contents.messages() if args.label is None or "without a label" not in w]
    for line in warnings:
        print(f"note: {line}", file=sys.stderr)
    if total == 0:
        raise DataError(contents.nothing("train"))

    said_at = time.monotonic()
    held_before = sum(store.counts().held_out.values())

    def progress(done: folder.Imported) -> None:
        nonlocal said_at
        if sys.stderr.isatty():
            print(f"\r{done.seen} of {total}", end="", file=raw(sys.stderr), flush=True)
        elif time.monotonic() - said_at >= _SAY_EVERY_S:
            said_at = time.monotonic()
            print(f"{done.seen} of {total}", file=sys.stderr, flush=True)

    done = folder.import_folder(store, contents, label=args.label, progress=progress)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for line in done.refused:
        print(f"left out: {line}", file=sys.stderr)
    if done.refused_count > len(done.refused):
        print(f"left out: {done.refused_count - len(done.refused)} more", file=sys.stderr)
    for line in done.contradicted:
        print(f"note: {line}", file=sys.stderr)
    if done.contradicted_count > len(done.contradicted):
        more = done.contradicted_count - len(done.contradicted)
        print(f"note: {more} more are there under another label", file=sys.stderr)
    if done.held_out:
        print(f"understood: {done.held_out} of the test part are held out", file=sys.stderr)
    by_share = sum(store.counts().held_out.values()) - held_before - done.held_out
    if by_share > 0:
        print(
            f"understood: {by_share} more are held out and never trained (edge.store.held_out, the share "
            "by which a node knows how good its model is)",
            file=sys.stderr,
        )
    if args.json:
        kept = ("added", "relabelled", "duplicates", "evicted")
        numbers = {k: getattr(done, k) for k in kept}
        numbers |= {"contradicted": done.contradicted_count, "not_read": sum(contents.foreign.values())}
        print(json.dumps({**numbers, "refused": done.refused_count, "stopped": done.stopped}))
    else:
        print(
            f"added {done.added}, labelled {done.relabelled} that were there, {done.duplicates} were there "
            f"already, left out {done.refused_count}"
        )
    if done.stopped is not None:
        print(f"stopped: {done.stopped}", file=sys.stderr)
        return StoreError.exit_code
    return 0 if done.added or done.duplicates or done.relabelled else DataError.exit_code


def _list(store: SampleStore, args: argparse.Namespace) -> int:
    which = Filter(
        state=SampleState(args.state) if args.state else None,
        label=args.label,
        held_out=True if args.held_out else None,
    )
    page = store.page(which, Order(args.order), limit=args.limit, offset=args.offset)
    if args.json:
        for sample in page.samples:
            print(json.dumps(_as_json(store, sample)))
    else:
        print(table((), [_row(sample) for sample in page.samples]))
        print(f"{len(page.samples)} of {page.total}")
    return 0


def _label(store: SampleStore, args: argparse.Namespace) -> int:
    who = getpass.getuser()
    if args.ids:
        if args.label is None:
            raise DataError("which label? apiary samples label ID... --as LABEL")
        print(f"changed: {_give(store, args, who)}")
        return 0
    from apiary_edge.labelling import terminal

    if not sys.stdin.isatty():
        raise DataError("labelling one after the other needs a terminal; or name ids, and --as LABEL")
    print(f"labelled: {terminal.label_all(store, who, input, print, paint=_paint)}")
    return 0


def _give(store: SampleStore, args: argparse.Namespace, who: str) -> int:
    """Label pictures that have the label `--was`; how many changed."""
    label = naming.readable(args.label) or None
    was = dict.fromkeys(resolve(store, args.ids), args.was or None)
    if label is not None and not args.new_label and (other := likened(label, store.labels())):
        raise DataError(
            f"{other!r} is there, and {label!r} differs from it in case, blanks or form only: "
            f"--as {other!r}, or --new-label for another label"
        )
    done = store.label_shown(was, label, who)
    if isinstance(done, Outdated):
        raise _other(done)
    return done.changed


def _delete(store: SampleStore, ids: Sequence[SampleId], was: str | None) -> int:
    done = store.delete(ids) if was is None else store.delete_shown(dict.fromkeys(ids, was or None))
    if isinstance(done, Outdated):
        raise _other(done)
    return done


def _other(found: Outdated) -> DataError:
    if not found.samples:
        return DataError(f"{found.gone[0][:12]} was deleted meanwhile; nothing was changed")
    first = found.samples[0]
    has = f"has the label {first.label!r} (by {first.labelled_by})" if first.label else "has no label"
    others = f", and {len(found.samples) - 1} more differ" if len(found.samples) > 1 else ""
    return DataError(
        f"{first.id[:12]} {has}{others}; nothing was changed: --was {first.label or ''!r} is for those"
    )


def _paint(drawing: str) -> None:
    print(drawing, file=raw(sys.stdout), flush=True)


def _stats(store: SampleStore, as_json: bool) -> None:
    counts = store.counts()
    waiting = counts.unlabelled + sum(counts.suggested.values())
    if as_json:
        print(json.dumps(asdict(counts)))
        return
    for label, n in counts.labelled.items():
        print(f"{n:7}  {label}  ({counts.held_out.get(label, 0)} of them held out)")
    print(f"{waiting:7}  wait for a label ({sum(counts.suggested.values())} with a suggestion)")
    print(f"{counts.total:7}  in all, {counts.bytes / 2**20:.1f} MB")


def _row(sample: Sample) -> list[str]:
    label = sample.label or ""
    if not label and sample.suggestion:
        label = f"{sample.suggestion.label}? {sample.suggestion.probability:.0%}"
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(sample.captured_at))
    size = f"{sample.width}x{sample.height}"
    return [sample.id[:12], at, label, size, sample.source, "held out" if sample.held_out else ""]


def _as_json(store: SampleStore, sample: Sample) -> dict[str, object]:
    suggestion = sample.suggestion
    return {
        "id": sample.id,
        "file": str(store.path(sample.id)),
        "state": sample.state.value,
        "label": sample.label,
        "suggestion": [suggestion.label, suggestion.probability] if suggestion else None,
        "held_out": sample.held_out,
        "captured_at": sample.captured_at,
        "source": sample.source,
        "bytes": sample.bytes,
    }
