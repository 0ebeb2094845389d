"""The paper's transcribed values: each is found by its names, and each contradiction names its tables."""

import pytest
import yaml

from isda_repro.errors import UserError
from isda_repro.experiments.paper_values import Inconsistency, PaperValue, paper_value, paper_values, reported


def test_the_copy_has_the_numbers_that_were_transcribed(root):
    original = root.parent / "shared/paper/reported.yaml"
    if not original.exists():
        pytest.skip("the original is not beside this checkout")
    transcribed = yaml.safe_load(original.read_text())
    for name, node in reported().items():
        assert node == transcribed[name] or name == "inconsistencies_within_the_paper"
    assert reported().keys() == transcribed.keys()


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
    found = paper_values(table)
    assert found[row][way] == value
    assert (len(found), {len(values) for values in found.values()}) == {
        "table1": (7, {4}), "table2": (8, {4}), "table3": (6, {4}), "table4": (13, {4}), "table5": (6, {2})
    }[table]  # fmt: skip


def test_values_are_of_so_many_runs():
    assert paper_value(3.5) == PaperValue(3.5, None, 1)
    assert paper_value([3, 0.5]) == PaperValue(3.0, 0.5, 3)
    assert paper_value([3, 0.5], 5) == PaperValue(3.0, 0.5, 5)
    assert paper_value(None, 5) is None


@pytest.mark.parametrize("wrong", [[], [1, 2, 3], "3.5", [True, 1], {}])
def test_what_is_no_value_is_named(wrong):
    with pytest.raises(UserError) as error:
        paper_value(wrong)
    assert str(wrong) in str(error.value)


@pytest.mark.parametrize("name", ["table6", "tables", "appendix_b"])
def test_a_table_without_values_is_named(name):
    with pytest.raises(UserError, match=name):
        paper_values(name)


def test_a_contradiction_names_its_tables_and_not_its_sections():
    assert Inconsistency("4.3, Table 4", "").tables == ("table4",)
    assert Inconsistency("Tables 2, 4, 5", "").tables == ("table2", "table4", "table5")
    assert Inconsistency("Tables 2 and 3", "").tables == ("table2", "table3")
    assert Inconsistency("equation 13", "").tables == ()
