import shutil

import pytest

from isda_repro import config
from isda_repro.errors import UserError
from isda_repro.experiments.paper_values import PaperValue
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table

SPEC = """
title: A table
metric: test_error_last10
baseline: CE
seeds: [0, 1, 2]
set: [recipe.epochs=3]
rows:
  - {ResNet-20: model=resnet20, ResNet-110: {set: [model=resnet110, model.dropout=0.3], seeds: [0]}}
columns:
  - {Digits: dataset=digits, CIFAR-10: dataset=cifar10}
  - {CE: loss=ce, ISDA: loss=isda}
"""


@pytest.fixture
def read(tmp_path):
    def from_text(text, name="some"):
        (tmp_path / f"{name}.yaml").write_text(text)
        return load_table(name, tmp_path)

    return from_text


def cell_of(table, row, column):
    return next(cell for cell in table.cells if cell.row == row and cell.column == column)


def test_cell_is_the_product_of_all_axes_and_collects_overrides_in_order(read):
    table = read(SPEC)
    assert len(table.cells) == 8
    cell = cell_of(table, ("ResNet-110",), ("CIFAR-10", "ISDA"))
    expected = ("recipe.epochs=3", "model=resnet110", "model.dropout=0.3", "dataset=cifar10", "loss=isda")
    assert cell.overrides == expected
    assert cell.seeds == (0,)
    assert cell.slug == "resnet-110--cifar-10--isda"
    assert cell_of(table, ("ResNet-20",), ("Digits", "CE")).seeds == (0, 1, 2)
    assert table.baseline_column(("CIFAR-10", "ISDA")) == ("CIFAR-10", "CE")
    assert table.baseline_column(("CIFAR-10", "CE")) is None


def test_exceptions_come_behind_in_order_and_only_where_they_fit(read):
    table = read(
        SPEC
        + """
cells:
  - {row: "*-110", column: ISDA, set: loss.lambda_0=1}
  - {column: "CIFAR-10 / *", seeds: [5, 6]}
  - {row: ResNet-110, column: "CIFAR-10 / ISDA", set: [loss.lambda_0=2], seeds: [7]}
"""
    )
    assert cell_of(table, ("ResNet-110",), ("Digits", "ISDA")).overrides[-1] == "loss.lambda_0=1"
    both = cell_of(table, ("ResNet-110",), ("CIFAR-10", "ISDA"))
    assert both.overrides[-2:] == ("loss.lambda_0=1", "loss.lambda_0=2")
    assert both.seeds == (7,)
    assert cell_of(table, ("ResNet-20",), ("CIFAR-10", "CE")).seeds == (5, 6)
    assert cell_of(table, ("ResNet-20",), ("Digits", "ISDA")).overrides[-1] == "loss=isda"


def test_papers_values_stand_in_column_order_and_null_takes_a_cell_out(read):
    table = read(SPEC + "paper: {ResNet-20: [7.39, [7.09, 0.12], null, [30.27, 0.34]]}")
    assert cell_of(table, ("ResNet-20",), ("Digits", "CE")).paper == PaperValue(7.39, None, 1)
    assert cell_of(table, ("ResNet-20",), ("Digits", "ISDA")).paper == PaperValue(7.09, 0.12)
    assert cell_of(table, ("ResNet-20",), ("CIFAR-10", "ISDA")).paper == PaperValue(30.27, 0.34)
    assert cell_of(table, ("ResNet-110",), ("CIFAR-10", "CE")).paper is None
    assert len(table.cells) == 7


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (SPEC + "colums: []", "colums"),
        (SPEC.replace("title: A table", ""), "title"),
        (SPEC.replace("test_error_last10", "accuracy"), "accuracy"),
        (SPEC.replace("baseline: CE", "baseline: Basic"), "Basic"),
        (SPEC.replace("baseline: CE", "baseline: {'*': [ResNet-20, Nobody]}"), "Nobody"),
        (SPEC + "precisions: [fp16]", "fp16"),
        (SPEC + "precisions: []", "precisions"),
        (SPEC + "notes: one", "notes"),
        (SPEC + "cells: [{row: ResNet-20, precisions: fp32}]", "precisions: fp32"),
        (SPEC + "cells: [{row: ResNet-20, needs: {gan: x}}]", "gan"),
        (SPEC + "cells: [{row: ResNet-20, needs: {column: Focal}}]", "Focal"),
        (SPEC + "cells: [{row: ResNet-20, needs: {row: ResNet-110}}, {row: '*-110', needs: {row: '*-20'}}]", "needs"),
        (SPEC + "cells: [{row: ResNet-20, needs: ISDA}]", "needs"),
        (SPEC.replace("CE: loss=ce", "CE: {metric: error}"), "metric: error"),
        (SPEC.replace("seeds: [0, 1, 2]", "seeds: [0, 0]"), "[0, 0]"),
        (SPEC.replace("seeds: [0, 1, 2]", "seeds: [0.5]"), "[0.5]"),
        (SPEC.replace("seeds: [0, 1, 2]", "seeds: [-1]"), "[-1]"),
        (SPEC.replace("seeds: [0, 1, 2]", "seeds: []"), "seeds"),
        (SPEC.replace("recipe.epochs=3", "recipe.epochs"), "recipe.epochs"),
        (SPEC.replace("recipe.epochs=3", "+seed=3"), "seed"),
        (SPEC.replace("{set: [", "{sets: ["), "sets"),
        (SPEC.replace("ISDA: loss=isda", "CE: loss=isda"), "CE"),
        (SPEC.replace("ISDA: loss=isda", "ce: loss=isda"), "resnet-20--digits--ce"),
        (SPEC + "  - {A: {metric: test_error_final}, B: {metric: test_error_final}}", "resnet-20--digits--ce"),
        (SPEC + "cells: [{row: WRN*, set: a=1}]", "WRN*"),
        (SPEC + "cells: [{row: '*-20', set: a=1}, {row: '*-20', set: a=2}]", "*-20"),
        *(
            (f"{SPEC}paper: {{{wrong}}}", token)
            for wrong, token in (
                ("ResNet-32: [1, 2, 3, 4]", "ResNet-32"),
                ("ResNet-20: [1, 2]", "4"),
                ("ResNet-20: [1, 2, 3, [4, 5, 6]]", "paper"),
                ("table: table9", "table9"),
                ("table: table2", "ResNet-20"),
                ("table: table2, nams: {}", "nams"),
                ("table: table2, names: {VGG: vgg}", "VGG"),
                ("table: table2, names: {ResNet-20: ResNet-32}", "Digits"),
            )
        ),
        ("[1, 2]", ""),
        ("rows: [", ""),
    ],
)
def test_mistake_is_named_with_its_file(read, text, token):
    with pytest.raises(UserError) as caught:
        read(text)
    file, _, said = str(caught.value).partition("some.yaml")
    assert file.endswith("/")
    assert token in said
    assert "\n" not in said


def test_label_that_only_has_a_metric_shows_more_of_the_same_runs(read):
    table = read(
        SPEC.replace(
            "CE: loss=ce, ISDA: loss=isda", "CE: loss=ce, ISDA: loss=isda, B: {set: loss=ce, metric: test_error_best}"
        )
        + "  - {Last: {metric: test_error_final}, Top-5: {metric: test_top5_error_final}}"
    )
    last, top5, best = (
        cell_of(table, ("ResNet-20",), ("CIFAR-10", *labels))
        for labels in (("CE", "Last"), ("CE", "Top-5"), ("B", "Last"))
    )
    assert (last.metric, top5.metric, best.metric) == ("test_error_final", "test_top5_error_final", "test_error_final")
    assert last.overrides == top5.overrides
    assert last.slug == top5.slug == "resnet-20--cifar-10--ce"
    assert best.slug == "resnet-20--cifar-10--b", "it makes runs of its own"
    assert table.baseline_of(last.row, ("CIFAR-10", "ISDA", "Top-5")) == (top5.row, top5.column)


def test_cells_that_refuse_a_precision_must_choose_theirs(read):
    """Otherwise a sweep would train runs that the table does not show."""
    for accepted, one in (("fp32", "fp32"), ("bf16", "bf16")):
        with pytest.raises(UserError, match=rf"ResNet-20.* accepts {one} alone.*add compute\.precision={one}"):
            plan_runs(read(SPEC + f"precisions: [{accepted}]"), config.compose)
    plan = plan_runs(read(SPEC + "precisions: [fp32]"), config.compose, ["compute.precision=fp32"])
    assert {run.settings["compute"]["precision"] for runs in plan.values() for run in runs} == {"fp32"}


def test_precisions_are_the_tables_or_an_exceptions(read):
    table = read(SPEC + "precisions: [fp32]\ncells: [{row: ResNet-110, column: ISDA, precisions: [bf16, fp32]}]")
    assert table.precisions == ("fp32",)
    assert {cell.precisions for cell in table.cells} == {("fp32",), ("bf16", "fp32")}
    assert cell_of(table, ("ResNet-110",), ("Digits", "ISDA")).precisions == ("bf16", "fp32")
    assert {cell.precisions for cell in read(SPEC).cells} == {("fp32", "bf16")}


ROWS = """
title: Methods
metric: test_error_last10
baseline: {"* + Dropout": Basic + Dropout, "*": [Basic, Basic + Dropout]}
seeds: [0]
rows: [{Basic: loss=ce, Basic + Dropout: loss=ce, Focal: loss=focal, Focal + Dropout: loss=focal}]
columns: [{A: model=resnet20, B: model=wrn16_8}]
paper: {Basic: [1, null], Focal + Dropout: [null, 1]}
"""


def test_rows_are_compared_with_the_first_of_their_baselines_that_the_column_has(read):
    table = read(ROWS)
    found = {(row[0], column[0]): table.baseline_of(row, column) for row in table.rows for column in table.columns}
    named = {key: None if where is None else where[0][0] for key, where in found.items()}
    assert named == {
        ("Basic", "A"): None,
        ("Basic", "B"): "Basic + Dropout",  # although there is no such cell
        ("Basic + Dropout", "A"): None,
        ("Basic + Dropout", "B"): None,
        ("Focal", "A"): "Basic",
        ("Focal", "B"): "Basic + Dropout",
        ("Focal + Dropout", "A"): "Basic + Dropout",
        ("Focal + Dropout", "B"): "Basic + Dropout",
    }
    assert all(where is None or where[1] == (key[1],) for key, where in found.items())
    assert table.baseline is None
    assert read(ROWS.replace('{"* + Dropout": Basic + Dropout, "*": [Basic, Basic + Dropout]}', "Focal")).baseline_of(
        ("Basic",), ("A",)
    ) == (("Focal",), ("A",))


def test_cell_may_need_a_generator_and_other_cells(read):
    table = read(ROWS + "cells: [{row: Focal, needs: {generator: acgan}}, {column: B, needs: {row: Basic, column: A}}]")
    focal, basic = cell_of(table, ("Focal",), ("B",)), cell_of(table, ("Basic",), ("A",))
    assert (focal.generator, basic.generator) == ("acgan", None)
    assert table.needed_by(focal) == {basic}
    assert table.needed_by(cell_of(table, ("Focal",), ("A",))) == set()


VARIANT = (
    SPEC
    + """
cells: [{row: ResNet-20, set: loss.lambda_0=1}]
variants:
  more: {title: Another, notes: [New.], cells: [{row: ResNet-110, set: model.dropout=0.1}]}
"""
)


def test_variant_is_the_table_with_a_title_and_exceptions_of_its_own(read, tmp_path):
    plain, table = read(VARIANT), load_table("some+more", tmp_path)
    assert (table.name, table.title, table.notes) == ("some+more", "Another", ("New.",))
    own = shutil.copy(tmp_path / "some.yaml", (tmp_path / "c++").mkdir() or tmp_path / "c++")
    assert load_table(f"{own}+more").name == "some+more", "given as a file"
    for cell in table.cells:
        same = cell_of(plain, cell.row, cell.column).overrides
        own = ("model.dropout=0.1",) if cell.row == ("ResNet-110",) else ()
        assert cell.overrides == (*same, *own)


def test_table_like_another_has_what_it_does_not_say_itself_but_no_variants(read, tmp_path):
    plain = read(VARIANT + "notes: [Of some.]")
    other = read("like: some\ntitle: Mine\nnotes: [Own.]\nseeds: [9]", "other")
    assert (other.name, other.title, other.notes) == ("other", "Mine", ("Own.", "Of some."))
    assert [cell.overrides for cell in other.cells] == [cell.overrides for cell in plain.cells]
    assert cell_of(other, ("ResNet-20",), ("Digits", "CE")).seeds == (9,)
    for name, named in (("none", "some"), ("some+less", r"some\.yaml.*\+more"), ("other+more", r"other\.yaml.*\+more")):
        with pytest.raises(UserError, match=named):
            load_table(name, tmp_path)


def test_runs_are_composed_with_their_seed_and_extra_overrides_make_others(demo):
    table, plan = demo
    reduced = plan_runs(table, config.compose, ["recipe.epochs=2"])
    for cell, runs in plan.items():
        for run in runs:
            assert run.config == config.compose([*cell.overrides, f"seed={run.seed}"])
    full_ids = {run.run_id for runs in plan.values() for run in runs}
    assert len(full_ids) == 6
    assert not full_ids & {run.run_id for runs in reduced.values() for run in runs}
    with pytest.raises(UserError, match="seed"):
        plan_runs(table, config.compose, ["seed=4"])


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (("loss=isda", "tracking.group=${oc.env:SECRET}"), "oc.env"),
        (("A table", "'a\n\n  b'"), "title"),
        (("ResNet-20:", '"a\\nb":'), "rows"),
        (("model=resnet20", '"model=resnet20\\n#SBATCH"'), "ResNet-20"),
        (("A table", '"\\e[2J"'), "control"),
        (("A table", "!!python/object/apply:os.system [evil]"), "os.system"),
        (("baseline: CE", "like: ../../secret"), "../../secret"),
        (("baseline: CE", "like: some\nnotes: A sentence."), "list of sentences"),
        (("seeds: [0, 1, 2]", "seeds: &all [0, 1]\nnotes: *all"), "*all"),
        (("A table", 3 * "["), "YAML"),
        (("metric: test_error_last10", "metric: [a]"), "metric"),
        (("set: [recipe.epochs=3]", "cells: 3"), "form"),
        (("  - {CE: loss=ce, ISDA: loss=isda}", 9 * "  - {a: loss=ce, b: loss=isda}\n"), "1,024"),
        (("title", "notes: [a]\ntitle: b\ntitle"), "title"),
    ],
)
def test_table_of_somebody_else_is_data(read, change, token):
    with pytest.raises(UserError) as error:
        read(SPEC.replace(*change))
    assert token in str(error.value)
    assert "some" in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_may_be_repeated_by_their_names_up_to_a_size(read):
    notes = "notes: [&one {text}, *one, *one]\n"
    assert read(SPEC + notes.format(text="b")).notes == ("b", "b", "b")
    with pytest.raises(UserError, match="aliases"):
        read(SPEC + notes.format(text=40_000 * "b"))


@pytest.mark.parametrize("name", ["a\nb", "a#b", ".hidden", "a%j"])
def test_table_whose_file_cannot_name_results_is_refused(read, tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text(SPEC)
    with pytest.raises(UserError, match="rename"):
        load_table(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(UserError, match="table="):
        load_table("../some", tmp_path)


@pytest.mark.parametrize(
    "override",
    ["+loss.x={_target_:os.system}", "loss._target_=os.system", "hydra.searchpath=[evil]", "choice.model=../a"],
)
def test_overrides_of_a_table_choose_neither_code_nor_places(read, override):
    table = read(SPEC.replace("loss=isda", f'"{override}"'))
    with pytest.raises(UserError) as error:
        plan_runs(table, config.compose)
    assert "\n" not in str(error.value)
