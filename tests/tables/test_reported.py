"""The paper's values as transcribed: every one is found by its names, and each of its contradictions has a place."""

import pytest
import yaml

from isda_repro.errors import UserError
from isda_repro.tables.reported import Inconsistency, PaperValue, inconsistencies, paper_value, paper_values, reported


def test_the_copy_is_what_was_transcribed(root):
    original = root.parent / "shared/paper/reported.yaml"
    if not original.exists():
        pytest.skip("the original is not beside this checkout")
    assert (root / "isda_repro/tables/reported.yaml").read_bytes() == original.read_bytes()


def test_all_of_it_is_read_as_yaml_has_it(root):
    assert reported() == yaml.safe_load((root / "isda_repro/tables/reported.yaml").read_text())


@pytest.mark.parametrize(
    ("table", "row", "way", "value"),
    [
        ("table1", ("ResNet-50",), ("baseline", "top1_error"), PaperValue(23.0, None, 1)),
        ("table1", ("ResNeXt-101, 32x8d",), ("isda", "top5_error"), PaperValue(5.4, None, 1)),
        ("table2", ("ResNet-32",), ("cifar100", "isda"), PaperValue(30.27, 0.34, 3)),
        ("table2", ("DenseNet-BC-190-40",), ("cifar10", "basic"), PaperValue(3.52, None, 1)),
        ("table3", ("cifar10", "Shake-Shake (26, 2x112d)"), ("autoaugment", "isda"), PaperValue(1.82, None, 1)),
        ("table3", ("cifar100", "Shake-Shake (26, 2x112d)"), ("cutout", "isda"), PaperValue(16.24, 0.20, 3)),
        ("table4", ("WGAN",), ("wrn28_10", "cifar10"), PaperValue(3.81, 0.08, 3)),
        ("table4", ("WGAN",), ("wrn28_10", "cifar100"), None),
        ("table5", ("Identity matrix",), ("cifar100",), PaperValue(18.53, 0.02, 3)),
    ],
)
def test_each_shape_of_table_gives_its_values_by_name(table, row, way, value):
    assert paper_values(table)[row][way] == value


@pytest.mark.parametrize(
    ("table", "rows", "columns"),
    [("table1", 7, 4), ("table2", 8, 4), ("table3", 6, 4), ("table4", 13, 4), ("table5", 6, 2)],
)
def test_no_value_is_left_out(table, rows, columns):
    found = paper_values(table)
    assert len(found) == rows
    assert {len(values) for values in found.values()} == {columns}


def test_values_are_of_so_many_runs():
    assert paper_value(3.5) == PaperValue(3.5, None, 1)
    assert paper_value([3, 0.5]) == PaperValue(3.0, 0.5, 3)
    assert paper_value([3, 0.5], 5) == PaperValue(3.0, 0.5, 5)
    assert paper_value(None, 5) is None
    for wrong in ([], [1, 2, 3], "3.5", [True, 1], {}):
        with pytest.raises(UserError, match=r"must be a number, \[mean, std\] or null"):
            paper_value(wrong)


def test_a_contradiction_names_its_tables_and_not_its_sections():
    assert Inconsistency("4.3, Table 4", "").tables == ("table4",)
    assert Inconsistency("Tables 2, 4, 5", "").tables == ("table2", "table4", "table5")
    assert Inconsistency("Tables 2 and 3", "").tables == ("table2", "table3")
    assert Inconsistency("equation 13", "").tables == ()
    assert str(Inconsistency("4.3, Table 4", "It is.")) == "The paper, 4.3, Table 4: It is."


def test_there_are_eight_contradictions():
    assert len(inconsistencies()) == len(reported()["inconsistencies_within_the_paper"]) == 8
