"""`apiary data`: list the known data sets, fetch one, share one out among nodes."""

import argparse
import json
import sys
import time
from pathlib import Path

from apiary.errors import DataError, SettingsError
from apiary.learn.partition import KINDS, table
from apiary.printable import printable
from apiary_cli.datasets import catalogue, fetch, sources
from apiary_cli.datasets.partition import Layout, materialise, materialise_owners
from apiary_cli.terminal.streams import raw

EXAMPLES = """examples:
  apiary data list
  apiary data fetch mnist
  apiary data partition digits --nodes 5 --by dirichlet --alpha 0.5 --out shares
  apiary data partition photos/ --nodes 3 --by quantity --out shares --plot shares.png
  apiary data partition my-arrays.npz --nodes 10 --by shards --out shares --json
  apiary data partition anna berta --out shares        a node of each folder, one held-out set of both
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags and sub-commands."""
    parser.description = "Data sets: what there is, how to get it, and shares of it for many nodes."
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch|partition")

    listing = actions.add_parser("list", help="the data sets that Apiary knows")
    listing.add_argument("--json", action="store_true", help="as one JSON line")
    listing.add_argument("--dir", type=Path, default=sources.DEFAULT_DIR, help="folder to look for them in")

    getting = actions.add_parser("fetch", help="download a data set, resumed and checked")
    getting.add_argument("name", help="a name of `apiary data list`")
    getting.add_argument(
        "--dir", type=Path, default=sources.DEFAULT_DIR, help="put it in DIR/NAME (default: datasets)"
    )
    getting.add_argument("--json", action="store_true", help="end with one JSON line")

    sharing = actions.add_parser(
        "partition",
        help="share pictures out among nodes, the way a real fleet would hold them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    sharing.add_argument(
        "source",
        nargs="+",
        help="a data set's name, a folder, an .npz or a CSV with pixels; several folders become a node each",
    )
    sharing.add_argument("--nodes", type=int, metavar="N", help="how many shares")
    sharing.add_argument("--by", choices=KINDS, default="iid", help="default: iid")
    sharing.add_argument("--alpha", type=float, default=0.5, help="dirichlet: smaller is less alike (.5)")
    sharing.add_argument("--shards", type=int, default=2, metavar="K", help="shards: runs for each node (2)")
    sharing.add_argument("--sigma", type=float, default=1.0, help="quantity: larger is less even (1)")
    sharing.add_argument("--seed", type=int, default=0, help="the same seed gives the same shares")
    sharing.add_argument("--test-share", type=float, default=0.2, help="held out for the server (.2)")
    sharing.add_argument(
        "--join-labels",
        action="store_true",
        help="labels that differ in case, blanks, hyphens only are one",
    )
    sharing.add_argument("--limit", type=int, metavar="N", help="take only N training pictures, by seed")
    sharing.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the named data set")
    sharing.add_argument("--out", type=Path, required=True, metavar="DIR", help="node-1 ..., server go here")
    sharing.add_argument("--plot", type=Path, metavar="FILE", help="also draw the shares, .png or .svg")
    sharing.add_argument("--json", action="store_true", help="print one JSON line instead of the table")


def run(args: argparse.Namespace) -> int:
    """Run the action. Raises ApiaryError."""
    return {"list": _list, "fetch": _fetch, "partition": _partition}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    rows = [(d, _where(d, args.dir)) for d in catalogue.all_datasets().values()]
    if args.json:
        keys = {"name", "description", "classes", "licence", "source", "citation"}
        print(json.dumps([{**d.model_dump(include=keys), "state": state} for d, state in rows]))
        return 0
    for dataset, state in rows:
        print(f"{dataset.name:10s} {dataset.description}")
        print(f"{'':10s} {len(dataset.classes)} classes · licence: {dataset.licence} · {state}")
        print(f"{'':10s} {dataset.source}")
    return 0


def _needs_files(dataset: catalogue.DataSet) -> bool:
    return dataset.layout != "scikit-learn"


def _where(dataset: catalogue.DataSet, folder: Path) -> str:
    if not _needs_files(dataset):
        return "ships with scikit-learn"
    if (folder / dataset.name).is_dir():
        return f"in {folder / dataset.name}"
    how = f"`apiary data fetch {dataset.name}`"
    return f"to be fetched by hand: {how} says how" if dataset.manual else how


def _fetch(args: argparse.Namespace) -> int:
    dataset = catalogue.get(args.name)
    folder = args.dir / dataset.name
    results = []
    if _needs_files(dataset):
        meter = _Meter()
        results = fetch.fetch(dataset, folder, on_progress=meter.bytes)
        meter.end()
    for r in results:
        print(f"{r.file}: {'fetched' if r.fresh else 'already here'}, {r.bytes} bytes", file=sys.stderr)
        if r.trust == "first use":
            print(
                f"{r.file}: its source publishes no checksum. sha256 {r.sha256} was recorded at the first "
                "download; a later one that differs is refused",
                file=sys.stderr,
            )
    source = sources.open_source(dataset.name, args.dir)
    if list(source.labels) != dataset.classes:
        raise DataError(f"{folder} has classes {source.labels}, expected {dataset.classes}")
    summary = {
        "name": dataset.name,
        "folder": str(folder) if _needs_files(dataset) else None,
        "train": int(source.y_train.size),
        "test": int(source.y_test.size),
        "classes": list(source.labels),
        "files": [{"file": r.file, "sha256": r.sha256, "bytes": r.bytes, "trust": r.trust} for r in results],
    }
    if args.json:
        print(json.dumps(summary))
    else:
        where = f"in {folder}" if _needs_files(dataset) else "with scikit-learn, nothing to fetch"
        print(f"{dataset.name}: {summary['train']} train and {summary['test']} test pictures {where}")
    return 0


def _partition(args: argparse.Namespace) -> int:
    if args.plot and args.plot.suffix.lower() not in (".png", ".svg"):
        raise DataError(f"--plot {args.plot}: expected a name that ends in .png or .svg")
    meter = _Meter()
    layout = _share(args, meter)
    meter.end()
    for note in layout.notes:
        print(note, file=sys.stderr)
    if args.plot:
        names = ", ".join(Path(source).name for source in args.source)
        _draw(layout, args.plot, f"{names} by {args.by if len(args.source) == 1 else 'owner'}")
    if args.json:
        print(json.dumps({"out": str(args.out), "labels": layout.labels, "counts": layout.counts}))
        return 0
    print(table(layout.matrix(), [n.name for n in layout.nodes], layout.labels))
    print(f"{'server':6s} {sum(layout.counts['server'].values())} held-out pictures in {layout.server}")
    return 0


def _share(args: argparse.Namespace, meter: "_Meter") -> Layout:
    if len(args.source) > 1:
        if args.nodes not in (None, len(args.source)) or args.by != "iid" or args.limit is not None:
            raise SettingsError(
                "several folders become a node each: --nodes, --by and --limit are for one source"
            )
        return materialise_owners(
            [Path(source) for source in args.source],
            args.out,
            seed=args.seed,
            test_share=args.test_share,
            join_labels=args.join_labels,
            on_progress=meter.pictures,
        )
    if args.nodes is None:
        raise SettingsError("how many shares? --nodes N; several folders become a node each without it")
    return materialise(
        args.source[0],
        args.out,
        nodes=args.nodes,
        by=args.by,
        alpha=args.alpha,
        shards=args.shards,
        sigma=args.sigma,
        seed=args.seed,
        test_share=args.test_share,
        limit=args.limit,
        data_dir=args.data,
        join_labels=args.join_labels,
        on_progress=meter.pictures,
    )


def _draw(layout: Layout, path: Path, title: str) -> None:
    from apiary.files import write_atomic
    from apiary_coordinator.report.plots import data_per_node, render

    counts = {n.name: layout.counts[n.name] for n in layout.nodes}
    figure = data_per_node(counts, layout.labels, title=title)
    write_atomic(path, render(figure, path.suffix.lower().lstrip(".")))


class _Meter:
    """One line of progress on a terminal, none elsewhere; at most ten times a second."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = 0.0

    def bytes(self, file: str, done: int, total: int | None) -> None:
        of = f" of {total / 1e6:.1f}" if total else ""
        self._say(f"{file}: {done / 1e6:.1f}{of} MB", done == total)

    def pictures(self, done: int, total: int) -> None:
        self._say(f"{done} of {total} pictures", done == total)

    def end(self) -> None:
        if self._live and self._last:
            print(file=sys.stderr)

    def _say(self, line: str, last: bool) -> None:
        now = time.monotonic()
        if self._live and (last or now - self._last > 0.1):
            self._last = now
            print(f"\r\x1b[2K{printable(line)}", end="", file=raw(sys.stderr), flush=True)
