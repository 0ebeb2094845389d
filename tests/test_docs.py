"""What the documents say is there is there, and what they take from the paper is as it was transcribed."""

import re

import pytest
import yaml

from isda_repro.config import CONF_DIR

ROOT = CONF_DIR.parent
DOCS = [
    "README.md",
    *(f"docs/{name}.md" for name in ("isda", "data", "cluster", "tracking", "generators", "inversion")),
]
REPORTED = yaml.safe_load((ROOT / "isda_repro/tables/reported.yaml").read_text())


@pytest.mark.parametrize("name", DOCS)
def test_links_to_files_and_headings_lead_somewhere(name):
    text = (ROOT / name).read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert ((ROOT / name).parent / link).exists(), link


@pytest.mark.parametrize("name", DOCS)
def test_scripts_tables_and_losses_that_are_named_exist(name):
    text = (ROOT / name).read_text()
    for script in re.findall(r"\b(scripts/\w+\.py|examples/\w+\.py|conf/[\w/]+\.yaml)", text):
        assert (ROOT / script).exists(), script
    for table in re.findall(r"\btable=(\w+)\b(?!\.yaml)", text):
        if table == "all":
            continue
        assert (CONF_DIR / "table" / f"{table}.yaml").exists(), table
    for loss in re.findall(r"\bloss=(\w+)", text):
        assert (CONF_DIR / "loss" / f"{loss}.yaml").exists(), loss


@pytest.mark.parametrize(
    "notes",
    [
        [entry["note"] for entry in REPORTED["inconsistencies_within_the_paper"]],
        REPORTED["not_specified_in_the_paper"],
        REPORTED["paper_versus_released_code"],
    ],
    ids=["inconsistencies", "not specified", "paper versus code"],
)
def test_the_notes_on_the_paper_are_all_in_the_document(notes):
    text = " ".join((ROOT / "docs/isda.md").read_text().split())
    for note in notes:
        assert " ".join(note.split()) in text


def test_every_loss_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for path in (CONF_DIR / "loss").glob("*.yaml"):
        assert re.search(rf"\b{path.stem}\b", text), path.stem
