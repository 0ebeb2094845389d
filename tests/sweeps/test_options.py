"""Options of sweeps: as they are typed, and in the command that continues a sweep."""

import shlex

import pytest

from isda_repro.config.options import parse_options
from isda_repro.errors import UserError
from isda_repro.sweeps.sweep import SweepOptions, sweep_command


def test_command_that_goes_on_with_a_sweep_has_its_options():
    options = SweepOptions(
        "demo",
        jobs=4,
        set=["recipe.epochs=2", "tracking.tags=[a,b]"],
        only=["0.1", "a=1, [b]", "'c': {d}", "ISDA"],
        seeds=[0, 2],
        data_dir="a 'b'",
        results_dir=None,
        dry_run=True,
    )
    python, script, *arguments = shlex.split(sweep_command(options))
    assert (python, script, len(arguments)) == ("python", "scripts/sweep.py", 7)
    options.dry_run = False
    assert parse_options(SweepOptions, arguments) == options
    assert "table=another" in sweep_command(options, "another").split()
    action, *arguments = shlex.split(sweep_command(options, action="status"))[2:]
    assert action == "status"
    told = parse_options(SweepOptions, arguments)
    assert (told.only, told.seeds, told.set, told.jobs) == (options.only, options.seeds, options.set, None)


def test_options_are_typed():
    options = parse_options(SweepOptions, ["table=demo", "dry_run=true", "set=[recipe.epochs=2,model.dropout=0.3]"])
    assert options == SweepOptions(table="demo", dry_run=True, set=["recipe.epochs=2", "model.dropout=0.3"])


@pytest.mark.parametrize(
    ("arguments", "token"),
    [
        (["table=demo", "job=4"], "job="),
        (["table=demo", "jobs=many"], "jobs=many"),
        (["table=demo", "recipe.epochs=2"], "set=[recipe.epochs=2]"),
        (["table=demo", "dryrun"], "dryrun"),
        (["table=demo", "dry_run=perhaps"], "dry_run=perhaps"),
        (["table=demo", "set=recipe.epochs=2"], "set=[a=1,b=2]"),
        (["table=[demo"], "table=[demo"),
        ([], "table="),
    ],
)
def test_mistyped_option_is_named(arguments, token):
    with pytest.raises(UserError) as caught:
        parse_options(SweepOptions, arguments)
    assert token in str(caught.value)
    assert "\n" not in str(caught.value)
