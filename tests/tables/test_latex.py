"""LaTeX output: a real TeX compiles it, and the text is read back from the page."""

import fcntl
import functools
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from synthetic import make_result

from isda_repro import config
from isda_repro.experiments.plan import plan_runs
from isda_repro.experiments.specification import load_table
from isda_repro.runs.result_index import index_results
from isda_repro.runs.sources import Found
from isda_repro.tables.aggregate import aggregate
from isda_repro.tables.cost_columns import cost_columns
from isda_repro.tables.layout import layout
from isda_repro.tables.render import FORMATS

PACKAGES = ("texlive-latex-base", "texlive-latex-recommended", "poppler-utils")  # 150 MB, under a minute


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return ``compiled(text)``, the text of the pages that TeX makes of a file."""
    with (tmp_path_factory.getbasetemp().parent / "apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the pytest workers share this folder; one installs
        if shutil.which("pdflatex") is None or shutil.which("pdftotext") is None:
            install()

    def run(text, name="table", **beside):
        folder = tmp_path_factory.mktemp("tex")
        for other, content in {name: text, **beside}.items():
            (folder / f"{other}.tex").write_text(content)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
        assert "was incomplete" not in done.stdout
        assert "Overfull" not in done.stdout
        assert "Float too large" not in done.stdout
        pages = subprocess.run(
            ["pdftotext", "-layout", f"{name}.pdf", "-"], cwd=folder, capture_output=True, check=True
        )
        return pages.stdout.decode()

    return run


def install():
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no pdflatex here, and no apt-get as root that could install it")
    quietly = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=quietly, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no pdflatex here, and apt-get cannot install it: {done.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="module")
def full():
    """Return the paper's tables and ours with nearly all runs, which makes them as long as they get."""
    composed = functools.cache(lambda overrides: config.compose(list(overrides)))
    laid_out = []
    for name in ("table1", "table2", "table4", "small_data"):
        table = load_table(name)
        plan = plan_runs(table, lambda overrides: composed(tuple(overrides)))
        runs = {run.run_id: run for runs in plan.values() for run in runs}
        found = [Found("", make_result(run, [5 + 0.1 * (i % 7)])) for i, run in enumerate(runs.values()) if i % 8]
        filled = aggregate(table, plan, index_results(found))
        laid_out.append(layout(filled, plan, "SWEEP", cost_columns=cost_columns(table, plan, Path("results"))))
    return laid_out


def letters(text):
    """Return letters and digits alone, because TeX breaks lines, hyphenates, and changes quotes and ligatures."""
    return "".join(re.findall("[A-Za-z0-9]", unicodedata.normalize("NFKC", text)))


@pytest.mark.slow
def test_the_papers_tables_and_ours_compile_in_one_document_each_on_a_page_with_its_caption(compiled, full):
    pages = compiled(FORMATS["tex"](full)).split("\f")
    for number, one in enumerate(full, start=1):
        title = f"Table {number}: {re.sub('^Table [0-9], ', '', one.title)}"
        (page,) = (page for page in pages if title in " ".join(page.split()))
        assert letters(one.caption)[-60:] in letters(page)


@pytest.mark.slow
def test_whatever_stands_in_a_table_compiles_and_can_be_read_on_the_page(layouts, compiled):
    page = " ".join(compiled(FORMATS["tex"](list(layouts.values()))).split())
    for text in (
        "100 % of what a table of {these} & <others> can hold | #1",  # TeX draws an underscore in text as a rule
        "one run˜ˆ\\",
        "7.09 ± 0.08 (n = 3)",
        "−0.31 [−0.40, −0.22]",
        "Constant λ0",
        "<b>Table 9</b> says 6 ± 1 | so *what* of “this”:",
        "python train.py model=resnet20 dataset=cifar100 loss=ce seed=1",  # commands can be copied from the page
        "recipe.epochs=12",
    ):
        assert text in page


@pytest.mark.slow
def test_a_file_can_be_put_into_a_document(layouts, compiled):
    table = FORMATS["tex"]([layouts["columns"]])
    paper = (
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs,graphicx}\\begin{document}"
        "Before, Table~\\ref{tab:columns}. \\input{columns} After.\\end{document}"
    )
    page = compiled(paper, name="paper", columns=table)
    assert "Before" in page
    assert "After" in page
    assert page.count("6.76 ± 0.34") == 1
