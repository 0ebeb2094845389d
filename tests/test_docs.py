"""References of the documents: files, headings, and the options and settings of the commands they show must exist."""

import ast
import inspect
import re
import shlex
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from isda_repro.config import CONF_DIR, compose, compose_run, options
from isda_repro.config.checks import ConfigError

ROOT = CONF_DIR.parent
DOCS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
)
PROGRAM = re.compile(r"^ *(?:\$ )?(?:\w+=\S+ )*(?:python|torchrun .*?) ((?:scripts/train_gan|train)\.py)( [^#\n]*|$)")
SCRIPT = re.compile(r"python ((?:scripts|benchmarks)/(?!train_gan)[\w/]+\.py)([^#`\n]*)")
NOT_COMPOSED = ("--", "-m", "runs/", "...", "model.weights=", "<")  # options, missing files, and ellipses


def anchors(path):
    """Return the anchors that GitHub makes of a document's headings."""
    headings = [line.lstrip("# ").lower() for line in path.read_text().splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_to_files_and_headings(name):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text())
    for link in links:
        if link.startswith(("http", "mailto:")):
            continue
        file, _, heading = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        assert not heading or target.suffix != ".md" or heading in anchors(target), link


@pytest.mark.parametrize("name", DOCS)
def test_files_and_choices_that_are_named_exist(name):
    text = (ROOT / name).read_text()
    for file in re.findall(
        r"\b((?:scripts|examples|slurm|benchmarks|isda_repro|tests)/[\w/]+\.(?:py|sh)|conf/[\w/]+\.yaml)", text
    ):
        assert (ROOT / file).exists(), file
    groups = [path.name for path in CONF_DIR.iterdir() if path.is_dir()]
    for group, choices in re.findall(rf"(?<![\w.])({'|'.join(groups)})=([a-z]\w*(?:,[a-z]\w*)*)\b(?![./-])", text):
        for choice in set(choices.split(",")) - {"all"}:
            assert (CONF_DIR / group / f"{choice}.yaml").exists(), f"{group}={choice}"


def commands():
    """Return the settings of each command in the documents that could be composed here, by command."""
    found = {}
    for name in DOCS:
        for line in (ROOT / name).read_text().splitlines():
            match = PROGRAM.match(line)
            if match and not any(word.startswith(NOT_COMPOSED) for word in match[2].split()):
                found[match[1] + match[2].rstrip()] = shlex.split(match[2])
    return found


@pytest.mark.parametrize(("command", "settings"), commands().items(), ids=lambda value: str(value)[:60])
def test_shown_commands_compose(command, settings):
    try:
        cfg = compose_run(settings)
    except ConfigError as error:
        pytest.fail(f"{command}: {error}")
    assert not OmegaConf.missing_keys(cfg)


def commands_of_scripts():
    """Return the other commands with options, in the documents and in the help of the scripts, by command."""
    texts = [(ROOT / name).read_text() for name in DOCS]
    texts += [ast.get_docstring(ast.parse(path.read_text())) or "" for path in (ROOT / "scripts").glob("*.py")]
    shown = {match[0].strip(): match for text in texts for match in SCRIPT.finditer(text)}
    return {
        command: (match[1], shlex.split(match[2]))
        for command, match in sorted(shown.items())
        if "parse_options(" in (ROOT / match[1]).read_text()
    }


class Parsed(Exception):  # noqa: N818
    """The options have been read, and the work would begin."""


@pytest.mark.parametrize(("command", "parts"), commands_of_scripts().items(), ids=lambda value: str(value)[:60])
def test_options_of_shown_commands_exist(command, parts, monkeypatch, load_script):
    name, arguments = parts
    monkeypatch.syspath_prepend((ROOT / name).parent)
    script, taken = load_script(name.removesuffix(".py")), []

    def parse(schema, given):
        taken.extend(given)
        raise Parsed(options.parse_options(schema, given))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(script, "parse_options", parse)
    with pytest.raises(Parsed):
        script.main(*([arguments] if inspect.signature(script.main).parameters else []))
    settings = [one for one in arguments if "=" in one and one not in taken]
    settings = [one for one in settings if not one.startswith(("run=", "model.weights="))]  # they name files
    assert not settings or not OmegaConf.missing_keys(compose(settings))


@pytest.mark.parametrize("name", [name for name in DOCS if "```python" in (ROOT / name).read_text()])
def test_python_snippets_run(name, tmp_path):
    snippet = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL))
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
