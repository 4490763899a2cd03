"""``streamer dataset``: the exactly-once audit, and what is in a dataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamer.commands.options import read_config
from streamer.console import Console, new_table, progress, reading
from streamer.errors import EXIT_FAILED
from streamer.terminal import tell
from streamer.units import counted, size

if TYPE_CHECKING:
    from rich.table import Table

    from streamer.audit import Report, Statistics
    from streamer.config import Config
    from streamer.kafka.log import CommittedState


@click.group()
def command() -> None:
    """Looks into an output folder: OUTPUT/DATASET on a disk, or a URI like
    s3://bucket/prefix/DATASET?region=…"""


@command.command(short_help="Proves from the output that every record was decided once.")
@click.argument("folder", metavar="[DIR]", required=False)
@click.option(
    "-c",
    "--config",
    "path",
    metavar="FILE",
    help="Also compares it with the commit log and the group's offsets. Without DIR: the folder "
    "that the config writes to (or STREAMER_CONFIG).",
)
@click.option("--set", "overrides", multiple=True, metavar="a.b=c", help="As for `streamer run`.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object: ok, records, outcomes, partitions, problems.",
)
@click.option(
    "--pairs",
    is_flag=True,
    help="Also compares all accepted records with each other: quadratic, for small datasets.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that read at the same time. As many as there are cores if left out.",
)
@click.option(
    "--remember",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Writes down what is found right, as it goes, and leaves out what FILE says already: new "
    "epochs, and the rest of an audit that was stopped.",
)
@click.option("--all", "everything", is_flag=True, help="With --remember: checks all of it again.")
def verify(
    folder: str | None,
    path: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    pairs: bool,
    jobs: int | None,
    remember: Path | None,
    everything: bool,
) -> None:
    """Proves from the output that every record was decided once; exit code 1 if anything is wrong.

    Ranges tile, manifests chain, checksums and counts match, every accepted row has its sample and
    every sample its row, every duplicate names an accepted record and has the similarity that it
    says. The folder alone cannot show whether its newest epochs are missing, as in a copy that is
    not complete: -c asks Kafka.
    """
    from streamer.audit import Audit
    from streamer.audit.pool import cores

    if everything and remember is None:
        raise click.UsageError("--all is for --remember FILE; without that all is checked anyway.")
    path = path or (os.environ.get("STREAMER_CONFIG") if folder is None else None)
    with ExitStack() as at_exit:
        if path is not None:
            config = read_config(path, overrides)
            committed = at_exit.enter_context(_committed(config))
            place = folder or dataset_uri(config)
        elif folder is not None:
            committed, place = None, folder
        else:
            raise click.UsageError("Give the dataset's folder DIR, or its config with -c.")
        audit = at_exit.enter_context(Audit(place, committed, remember, everything))
        with reading("checking", audit.total_bytes) as advance:
            report = audit.run(pairs, advance, jobs or cores())
    if as_json:
        tell(report.as_json())
    else:
        _print_report(audit.folder.uri, report, remember)
    if not report.ok:
        sys.exit(EXIT_FAILED)


@contextmanager
def _committed(config: Config) -> Iterator[CommittedState]:
    from streamer.kafka.admin import Admin
    from streamer.kafka.log import CommittedState, LogReader

    admin = Admin(config.kafka)
    with LogReader(config, admin, config.commits_topic) as log:
        yield CommittedState(config, admin, log)


def dataset_uri(config: Config) -> str:
    """The folder that the config writes to."""
    from streamer.sink.storage import Storage

    return Storage(config.output.path, config.dataset).root_uri


@command.command(short_help="Counts, bytes, and quantiles of every score.")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats(folder: str, as_json: bool) -> None:
    """Counts by outcome, reason, format, writer and partition; bytes; quantiles of every score."""
    from streamer.audit import statistics

    with progress("reading", None) as advance:
        seen = 0

        def seen_so_far(done: int, total: int) -> None:
            nonlocal seen
            advance(done - seen, total)
            seen = done

        found = statistics(folder, seen_so_far)
    if as_json:
        tell(found.as_json())
    else:
        _print_statistics(found)


def _print_report(place: str, report: Report, remember: Path | None) -> None:
    from streamer.audit import NOTES, PROBLEMS

    console = Console()
    partitions = counted(len(report.partitions), "partition")
    console.print(f"{place}: {counted(report.records, 'record')} in {partitions}")
    if remember is not None:
        if report.forgotten:
            console.print(f"all is checked again: {report.forgotten}", style="yellow")
        console.print(
            f"{counted(report.remembered_epochs, 'epoch')} as remembered in {remember}, "
            f"{report.checked_epochs} checked"
        )
    if report.records:
        console.print(_outcomes({"all": dict(report.outcomes)}, ""))
    ranges = new_table("partition", "first", "next", "records", "skipped")
    for partition, facts in sorted(report.partitions.items()):
        ranges.add_row(
            str(partition), *(str(facts[name]) for name in ("first", "next", "records", "skipped"))
        )
    if report.partitions:
        console.print(ranges)
    for findings, meaning, style in (
        (report.notes, NOTES, "yellow"),
        (report.problems, PROBLEMS, "red"),
    ):
        for code in dict.fromkeys(f.code for f in findings):
            console.print(f"{code} ({report.counts[code]}): {meaning[code]}", style=style)
            for finding in [f for f in findings if f.code == code][:10]:
                console.print(f"    {finding.path}: {finding.detail}")
            if report.counts[code] > 10:
                console.print(f"    … and {report.counts[code] - 10} more")
    if report.pairs is not None:
        console.print(
            f"{report.pairs['compared']} winners were compared with each other, "
            f"at a threshold of {report.pairs['threshold']}",
        )
    if not report.ok:
        problems = sum(report.counts[code] for code in {f.code for f in report.problems})
        console.print(f"NOT ok: {counted(problems, 'problem')}", style="bold red")
        return
    console.print(f"ok: {_proven(report)}", style="green")
    if report.compared_with is None:
        console.print(
            "The folder alone cannot show whether its newest epochs are missing: "
            "`streamer dataset verify -c CONFIG` compares it with the commit log.",
        )


def _proven(report: Report) -> str:
    if not report.records:
        return f"no records yet, neither here nor in {report.compared_with}"
    proven = "every record was decided once, and every file is what its manifest says"
    if report.compared_with is not None:
        proven += f"; nothing that {report.compared_with} names is missing"
    return proven


def _print_statistics(found: Statistics) -> None:
    console = Console()
    console.print(
        f"records: {found.records}, epochs: {found.epochs}, shards: {found.shards} with {size(found.shard_bytes)}, "
        f"of it {size(found.image_bytes)} of images; tables: {size(found.table_bytes)}"
    )
    console.print(_outcomes({"all": found.outcomes, **found.writers}, "writer"))
    console.print(_outcomes({str(p): c for p, c in sorted(found.partitions.items())}, "partition"))
    for name, counter in (
        ("reason", found.reasons),
        ("flag", found.flags),
        ("format", found.formats),
    ):
        if counter:
            table = new_table(name, "records")
            for value, n in counter.most_common():
                table.add_row(value, str(n))
            console.print(table)
    if found.scores:
        table = new_table("score", "records", "lowest", "10%", "median", "90%", "highest")
        for name, scores in sorted(found.scores.items()):
            quantiles = scores.quantiles()
            shown = (
                [f"{quantiles[q]:.3f}" for q in ("0", "0.1", "0.5", "0.9", "1")]
                if quantiles
                else []
            )
            table.add_row(name, str(scores.count), *shown)
        console.print(table)


def _outcomes(rows: dict[str, dict[str, int]], title: str) -> Table:
    from streamer.records import OUTCOMES

    table = new_table(title, "records", *OUTCOMES)
    for name, counts in rows.items():
        table.add_row(
            name, str(sum(counts.values())), *(str(counts.get(outcome, 0)) for outcome in OUTCOMES)
        )
    return table
