"""Is a data set there and whole?  python scripts/data.py verify dataset=cifar10 [data_dir=data]

Lists each file with its checksum and the images of each class; exits with 2, and says what to do, if one is wrong.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.options import parse_options


@dataclass
class VerifyOptions:
    """``dataset``: cifar10, cifar100 or digits; ``data_dir``: where it is, by default $ISDA_DATA or data."""

    dataset: str = MISSING
    data_dir: str = os.environ.get("ISDA_DATA", "data")


def main(arguments: list[str]) -> None:
    """Verify and report."""
    if not arguments or arguments[0] != "verify":
        raise UserError("say what to do: python scripts/data.py verify dataset=cifar10")
    options = parse_options(VerifyOptions, arguments[1:])

    from isda_repro.data import verify

    found = verify(options.dataset, Path(options.data_dir))
    for line in found.lines():
        print(line)
    if not found.ok:
        wrong = ", ".join(file.path for file in found.files if file.state != "ok")
        raise UserError(
            f"{options.dataset} under {options.data_dir} is not whole ({wrong}): with a network, the next training run "
            "repairs it; without one, put the files of the official archive there"
        )
    print(f"{options.dataset} is whole")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
