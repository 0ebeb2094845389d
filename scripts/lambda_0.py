"""List lambda_0 of each network, data set and variant of ISDA, or propose values from a search. From the root:

python scripts/lambda_0.py                          # conf/lambda_0.yaml, resolved
python scripts/lambda_0.py table=lambda_cifar       # the best value of each row of that search, as entries of that file
"""

import sys
from dataclasses import dataclass

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

from isda_repro.config import CONF_DIR, compose, lambda_0_of
from isda_repro.config.options import parse_options
from isda_repro.experiments.paper_values import on_imagenet
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.experiments.table import Label
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import results_folder, results_on_disk, runs_folder
from isda_repro.tables.aggregate import FilledCell, FilledTable, aggregate


@dataclass
class SearchOptions:
    """Options of this script."""

    table: str | None = None
    runs_dir: str = "runs"
    results_dir: str = "results"


def in_force() -> list[str]:
    """Return a line for every network of ``conf/model`` but timm's, with each data set and variant of the tables."""
    networks = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")
    losses = sorted(path.stem for path in (CONF_DIR / "loss").glob("isda*.yaml"))
    lines = []
    for network in networks:
        for dataset in ("imagenet",) if on_imagenet(network) else ("cifar10", "cifar100"):
            variants = losses if network == "wrn28_10" else ["isda"]  # Table 5 has only this network
            for loss in variants:
                entry = lambda_0_of(network, dataset, loss)
                lines.append(f"{network:22} {dataset:9} {loss:14} {entry['value']:<5g} {entry['source']}")
    return lines


def proposed(filled: FilledTable) -> list[str]:
    """Return an entry for each row whose runs have all ended, and a comment about what any other row lacks."""
    rows = {row: [cell for key, cell in filled.cells.items() if key[0] == row] for row in filled.table.rows}
    return [_entry(row, cells, filled.error) for row, cells in rows.items()]


def _entry(row: Label, cells: list[FilledCell], error: str) -> str:
    missing = [cell.cell.column[-1] for cell in cells if cell.missing]
    if missing:
        return f"# {', '.join(row)}: not finished at {', '.join(missing)}"
    errors = {cell.cell.column[-1]: cell.mean for cell in cells if cell.mean is not None}
    if not errors:
        return f"# {', '.join(row)}: runs of every value diverged"
    best = min(errors, key=lambda value: errors[value])
    cell = next(cell for cell in cells if cell.cell.column[-1] == best)
    choice = compose(list(cell.cell.overrides)).choice
    if limit := next((item for item in cell.cell.overrides if item.startswith("dataset.train_limit=")), None):
        return f"# {', '.join(row)}: {best}, for {limit} alone: it belongs to the cells of a table (cells: set:)"
    seeds = len(cell.cell.seeds)
    tried = [f"{percent:.2f}% at {value}" for value, percent in errors.items()]
    tried += [f"diverged at {cell.cell.column[-1]}" for cell in cells if cell.diverged]
    source = f"our search, n = {seeds}, {error} {', '.join(tried)}"
    return (
        f"- {{loss: {choice.loss}, dataset: {choice.dataset}, model: {choice.model}, value: {best}, "
        f'source: "{source}"}}'
    )


def main(arguments: list[str]) -> None:
    """List the values, or print the proposed entries."""
    options = parse_options(SearchOptions, arguments)
    if options.table is None:
        print(*in_force(), sep="\n")
        return
    table = load_table(options.table)
    if not all(any(item.startswith("loss.lambda_0=") for item in cell.overrides) for cell in table.cells):
        raise UserError(f"table={table.name} is no search for lambda_0: its columns must set loss.lambda_0=")
    plan = plan_runs(table, compose)
    found = results_on_disk(runs_folder(options.runs_dir), results_folder(options.results_dir))
    filled = aggregate(table, plan, index_results(found))
    print(*filled.problems, sep="\n", end="\n" if filled.problems else "", file=sys.stderr)
    print(*proposed(filled), sep="\n")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
