"""The page of a run, and a trace of each of its time lines, made again from its JSON.

python -m benchmarks.report bench-results/quick.json [--out page.html] [--screenshots docs/images]
"""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.report import write_report, write_trace
from benchmarks.results import decode


def main() -> None:
    arguments = _arguments()
    try:
        with open(arguments.results, "rb") as file:
            run = decode(file.read())
    except (OSError, ValueError) as error:
        sys.exit(f"{arguments.results}: {error}")
    out = arguments.out or f"{arguments.results.removesuffix('.json')}.html"
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    write_report(run, out)
    print(out)
    for number, timeline in enumerate(run.timelines):
        path = f"{out.removesuffix('.html')}-{number}.trace.json"
        write_trace(timeline, path)
        print(f"{path}: {timeline.title}; open it in ui.perfetto.dev")
    if arguments.screenshots:
        from benchmarks.report.browser import take_pictures

        print("\n".join(take_pictures(out, arguments.screenshots)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", help="what `python -m benchmarks` wrote")
    parser.add_argument("--out", default="", help="the page; beside the JSON unless told")
    parser.add_argument("--screenshots", default="", metavar="FOLDER", help="pictures of the page, by Chromium")
    return parser.parse_args()


if __name__ == "__main__":
    main()
