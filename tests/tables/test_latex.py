"""The LaTeX is compiled by a real TeX, and its text read back from the page."""

import os
import shutil
import subprocess

import pytest

from isda_repro.tables.render import FORMATS, latex

PACKAGES = ("texlive-latex-base", "texlive-latex-recommended", "poppler-utils")  # 150 MB, under a minute


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """``compiled(text)``: the text of the pages that a file becomes."""
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


@pytest.mark.slow
def test_all_tables_compile_in_one_document(layouts, compiled):
    page = " ".join(compiled(FORMATS["tex"](list(layouts.values()))).split())
    assert "100 % of what a table of {these} & <others> can hold | #1" in page, "TeX draws the underscore of a text"
    assert "one run˜ˆ\\" in page
    assert "7.09 ± 0.08 (n = 3)" in page
    assert "−0.31 [−0.40, −0.22] better" in page
    assert "Constant λ0" in page
    assert "<b>Table 9</b> says 6 ± 1 | so *what* of “this”:" in page
    assert "python train.py model=resnet20 dataset=cifar100 loss=ce seed=1" in page, "it can be copied from the page"
    assert "recipe.epochs=12 instead of 160" in page


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
    assert page.count("ISDA − Basic, paper") == 3


def test_what_tex_would_take_for_its_own_is_escaped(layouts):
    text = latex(layouts["columns"])
    body = text.replace("\\\\", "").replace("\\&", "").replace("\\_", "").replace("\\#", "").replace("\\%", "")
    assert r"A \textbar{} B \textless{}c\textgreater{} \& D" in text
    assert r"one\_run\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert "Constant $\\lambda_0$" in text
    assert "#" not in body
    assert "~" not in body
    assert body.replace("\\{", "").count("{") == body.replace("\\}", "").count("}")
    assert text.isascii()
