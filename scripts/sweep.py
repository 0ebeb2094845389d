"""Fill a table: run what is missing, one run after the other; finished runs are skipped. From the repository root:

python scripts/sweep.py table=demo                     # also cluster=local runs_dir=runs data_dir=data
python scripts/sweep.py table=demo dry_run=true        # say what would run
python scripts/sweep.py table=demo set=[recipe.epochs=2,dataset.train_limit=500]    # a reduced sweep: other runs
python scripts/sweep.py status table=demo
"""

import sys
from pathlib import Path

from isda_repro.stopping import leave_on_interrupt

leave_on_interrupt()  # what is imported below takes a moment

from isda_repro.config import compose
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.options import parse_options
from isda_repro.tables.status import status
from isda_repro.tables.sweep import SweepOptions, sweep


def main(arguments: list[str]) -> int:
    """``status`` prints, anything else runs."""
    if not Path("train.py").is_file():
        raise UserError("train.py is not here: run this from the repository root")
    if arguments and arguments[0] == "status":
        print("\n".join(status(parse_options(SweepOptions, arguments[1:]), compose)))
        return 0
    return sweep(parse_options(SweepOptions, arguments), compose)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.exit(main(sys.argv[1:]))
