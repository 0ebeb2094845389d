"""Temporary memory of the statistics: of the order of the features, however samples are distributed among classes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from criteria import STATISTICS, as_kept, covariances
from float64_reference import two_pass

CLASSES, WIDTH, SAMPLES = 64, 64, 32768  # features of 8 MiB

# Prints by how much a step raises the peak of resident memory, in units of the features.
MEASURE = """
import re, sys, torch
from pathlib import Path
from torch import nn
sys.path.insert(0, sys.argv[1])
from criteria import MAKERS
name, classes, width, samples = sys.argv[2], *map(int, sys.argv[3:6])
if sys.argv[6] == "accelerator":
    torch.compiler.is_compiling = lambda: True
criterion = MAKERS[name](classes, width)
is_dense = sys.argv[7] == "dense"
head = nn.Conv1d(width, classes, 1) if is_dense else nn.Linear(width, classes)
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def call(samples):
    features = torch.ones(4, width, samples // 4) if is_dense else torch.ones(samples, width)
    features[0] = 2
    targets = torch.zeros(samples, dtype=torch.int64)
    targets[:classes] = torch.arange(min(classes, samples))
    targets = targets.view(4, -1) if is_dense else targets
    if sys.argv[7] == "soft":
        targets = torch.full((samples, classes), 1 / classes)
    features.requires_grad_()
    before = peak()
    criterion(features, head(features), targets, head=head, progress=0.5).backward()
    return (peak() - before) / features.nbytes
call(classes)  # loads libraries
print(call(samples))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "way", "form"),
    [("isda", "cpu", "hard"), ("isda_packed", "cpu", "hard"), ("isda", "cpu", "soft")]
    + [
        pytest.param(name, "accelerator", form, marks=pytest.mark.slow)
        for name in ("isda", "isda_packed")
        for form in ("hard", "soft")
    ]
    + [
        pytest.param(name, "cpu", "hard", marks=pytest.mark.slow) for name in ("isda_diagonal", "isda_shared", "center")
    ],
)
def test_step_on_lopsided_classes_takes_memory_of_the_order_of_the_features(name, way, form):
    """A step also has logits, as large as the features here, several times; nearly all samples are of class 0.

    Soft targets give each sample a share in each class; all logits that these stand for would take 64 times the memory.
    """
    sizes = map(str, (CLASSES, WIDTH, SAMPLES))
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), name, *sizes, way, form]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    limit = 20 if form == "hard" else 28  # which computes in float64
    assert 0 < float(done.stdout) < limit, f"{name}, {way}, {form}: {done.stdout} times the features"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "way", "limit"),
    [("isda", "cpu", 2.5), ("isda_diagonal", "cpu", 2.5)]
    + [
        pytest.param(name, way, limit, marks=pytest.mark.slow)
        for name, way, limit in (
            *(("isda_packed", "cpu", 4), ("isda_shared", "cpu", 2.5), ("center", "cpu", 8)),
            *(("isda", "accelerator", 14), ("isda_diagonal", "accelerator", 6), ("isda_packed", "accelerator", 18)),
        )
    ],
)
def test_dense_step_on_lopsided_classes_takes_memory_of_the_order_of_the_features(name, way, limit):
    """Four images have the pixels; one of the times the features is their gradient. Measured: 1.4, and limit / 1.8."""
    sizes = map(str, (8, 512, SAMPLES))  # features of 64 MiB
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), name, *sizes, way, "dense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 0 < float(done.stdout) < limit, f"{name}, {way}: {done.stdout} times the features"


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
@pytest.mark.parametrize("width", [5, 1])
@pytest.mark.parametrize("kind", STATISTICS)
def test_parts_of_a_large_batch_give_the_covariances_of_one_pass(kind, width, way, monkeypatch, request):
    from isda_repro.losses.covariances import class_statistics

    if way == "accelerator":
        request.getfixturevalue("accelerator")
    torch.manual_seed(0)
    features, targets = torch.randn(200, width).double() + 3, (torch.rand(200) ** 8 * 6).long()
    for limit in (1, 2**30):
        monkeypatch.setattr(class_statistics, "rows_bytes", lambda features, limit=limit: limit)
        monkeypatch.setattr("isda_repro.losses.covariances.packed.rows_bytes", lambda features, limit=limit: limit)
        monkeypatch.setattr(class_statistics, "COMPARED_BYTES", limit)
        statistics = STATISTICS[kind](7, width).double()
        statistics.update(features[:50] + 1, targets[:50])
        statistics.update(features, targets)
        seen = torch.cat((features[:50] + 1, features)), torch.cat((targets[:50], targets))
        mean, covariance = two_pass(*seen, 7)
        torch.testing.assert_close(statistics.mean, mean, rtol=1e-11, atol=1e-12)
        assert torch.equal(statistics.count, torch.bincount(seen[1], minlength=7).double())
        found, expected = covariances(statistics), as_kept(statistics, covariance)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
