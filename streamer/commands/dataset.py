"""``streamer dataset``: the exactly-once audit, and what is in a dataset."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from streamer.commands.terminal import new_table, progress, size
from streamer.errors import EXIT_FAILED

if TYPE_CHECKING:
    from rich.table import Table

    from streamer.audit import Report, Statistics


@click.group()
def command() -> None:
    """Looks into an output folder: OUTPUT/DATASET on a disk, or a URI like
    s3://bucket/prefix/DATASET?region=…"""


@command.command(short_help="Proves from the output alone that every record was decided once.")
@click.argument("folder", metavar="DIR")
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
def verify(folder: str, as_json: bool, pairs: bool) -> None:
    """Proves from the output alone that every record was decided once; exit code 1 if anything is
    wrong.

    Ranges tile, manifests chain, checksums and counts match, every accepted row has its sample and
    every sample its row, every duplicate names an accepted record and has the similarity that it
    says.
    """
    from streamer.audit import Audit

    audit = Audit(folder)
    with progress("checking", audit.total_bytes) as advance:
        report = audit.run(pairs, advance)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _print_report(audit.folder.uri, report)
    if not report.ok:
        sys.exit(EXIT_FAILED)


@command.command(short_help="Counts, bytes, and quantiles of every score.")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats(folder: str, as_json: bool) -> None:
    """Counts by outcome, reason, format, writer and partition; bytes; quantiles of every score."""
    from streamer.audit import statistics

    with progress("reading", None) as advance:
        seen = 0

        def tell(done: int, total: int) -> None:
            nonlocal seen
            advance(done - seen, total)
            seen = done

        found = statistics(folder, tell)
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        _print_statistics(found)


def _print_report(place: str, report: Report) -> None:
    from rich.console import Console

    from streamer.audit import NOTES, PROBLEMS

    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{place}: {report.records} records in {len(report.partitions)} partitions", markup=False
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
            console.print(
                f"{code} ({report.counts[code]}): {meaning[code]}", style=style, markup=False
            )
            for finding in [f for f in findings if f.code == code][:10]:
                console.print(f"    {finding.path}: {finding.detail}", markup=False)
            if report.counts[code] > 10:
                console.print(f"    … and {report.counts[code] - 10} more")
    if report.pairs is not None:
        console.print(
            f"{report.pairs['compared']} winners were compared with each other, at a threshold of {report.pairs['threshold']}",
            markup=False,
        )
    if report.ok:
        console.print(
            "ok: every record was decided once, and every file is what its manifest says",
            style="green",
        )
    else:
        console.print(
            f"NOT ok: {sum(report.counts[c] for c in {f.code for f in report.problems})} problems",
            style="bold red",
        )


def _print_statistics(found: Statistics) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
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
