"""The agent against what an operator would type: the same machine, data and store, taking turns.

One command makes a data set, or finds it, runs ours and the rivals, and prints medians, ranges and ratios::

    python -m benchmarks.race --directory /var/tmp/race --gigabytes 4 --rounds 5 --tools DIR --json race.json
    python -m benchmarks.race --directory /var/tmp/race --only full,restore --rivals aws
    python -m benchmarks.race --directory /var/tmp/race --only slow --rate 200Mbit --rate 50Mbit

The rivals are those of ``benchmarks.rivals``; their tools come from the PATH, or from a venv that
``--install-tools DIR`` makes.  Data, restored data and scratch lie in ``--directory``; the
store is in memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks import race_machine
from benchmarks.measure import Failed
from benchmarks.race_contenders import contenders
from benchmarks.race_figures import MIB, Run, draw, values
from benchmarks.race_place import add_options, keep, scene, some_of
from benchmarks.race_stories import STORIES, Link, Race
from benchmarks.rivals import PIPELINES
from benchmarks.sink import rate


def progress(run: Run) -> None:
    """Say on stderr how a run went."""
    print(
        f"{run.story}, round {run.round}, {run.contender}: {run.wall:.1f} s, {run.cpu:.1f} CPU s, "
        f"tree {run.tree_rss / MIB:.0f} MiB, agent {run.agent_rss / MIB:.0f} MiB, sync {run.sync:.1f} s, "
        f"store {run.sink_cpu:.1f} CPU s",
        file=sys.stderr,
        flush=True,
    )


def measure(given: argparse.Namespace, runs: list[Run], facts: dict[str, object]) -> None:
    """Run the race; adds all runs that count to ``runs``, and where they ran to ``facts``."""

    def told(run: Run) -> None:
        runs.append(run)
        progress(run)

    with ExitStack() as stack:
        where = scene(given, stack)
        facts |= race_machine.facts(where.place, where.environment()) | {"data": where.data.record}
        race = Race(
            where,
            contenders(where, given.rivals, encrypt=given.encrypt),
            rounds=given.rounds,
            told=told,
            warm=given.warm,
            links=[Link(rate, given.latency) for rate in given.rate],
            slow_rounds=given.slow_rounds,
        )
        stack.callback(lambda: facts.update(proven=sorted(": ".join(pair) for pair in race.proven)))
        race.run(given.only)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--warm", type=int, default=1, help="how often before that, not counted")
    parser.add_argument("--only", type=some_of(STORIES), default=list(STORIES), help=f"of {','.join(STORIES)}")
    parser.add_argument("--rivals", type=some_of(PIPELINES), default=list(PIPELINES), help=f"of {','.join(PIPELINES)}")
    parser.add_argument("--rate", type=rate, action="append", default=[], help="slow link, such as 200Mbit; repeatable")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of a round trip on the slow link")
    parser.add_argument("--slow-rounds", type=int, default=2, help="how often the restore over a slow link runs")
    parser.add_argument("--encrypt", action="store_true", help="run ours with encryption as well")
    given = parser.parse_args(words)
    given.rate = given.rate or [rate("200Mbit")]
    return given


def main() -> None:
    """Run the race, and print; also what there is when a run fails."""
    given = parsed()
    runs: list[Run] = []
    facts: dict[str, object] = {}
    try:
        measure(given, runs, facts)
    except Failed as error:
        sys.exit(str(error))
    finally:
        draw(runs)
        keep(given.json, facts, values(runs))


if __name__ == "__main__":
    main()
