"""What is written about the code: examples in docstrings run, links lead somewhere, citation and pages can be read."""

import doctest
import importlib
import os
import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

import selfexplain_jax
from selfexplain_jax.attribution import METHODS
from selfexplain_jax.metrics.map_metrics import MAP_METRICS
from selfexplain_jax.models.pooling import POOLS
from selfexplain_jax.objectives import TERMS
from selfexplain_jax.report.reproduce_comparisons import read_comparisons

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted((ROOT / "selfexplain_jax").rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)\s]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_files_and_code_that_the_documents_name_exist():
    text = (ROOT / "docs" / "theory.md").read_text() + (ROOT / "docs" / "related_work.md").read_text()
    for name, _ in re.findall(r"`((?:configs|launch|tests|metrics|selfexplain_jax)/[\w/]+\.?\w*)(:\w+)?`", text):
        assert (ROOT / name).exists() or (ROOT / "selfexplain_jax" / name).exists(), name


def measured():
    """The methods, and the numbers of them, that a stored comparison has."""
    methods = [row for comparison in read_comparisons().values() for row in comparison.methods.items()]
    return {name for name, _ in methods} | {number for _, numbers in methods for number in numbers}


def test_methods_that_the_survey_calls_implemented_are_there():
    text = (ROOT / "docs" / "related_work.md").read_text()
    there = {*METHODS, *MAP_METRICS, *TERMS, *POOLS, *measured()}
    for claim in re.findall(r"\*\*(?:compared|implemented)\*\*\s+\(`(\w+)`", text):
        assert claim in there, claim


def entries():
    """(heading, paragraph) of every work in the survey."""
    text = (ROOT / "docs" / "related_work.md").read_text().partition("\n## ")[2]
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\n+", text)]
    return [(re.match(r"\*\*(.+?)\*\*", p).group(1), p) for p in paragraphs if p.startswith("**")]


def test_the_survey_says_of_each_work_what_it_promises():
    works = entries()
    assert len(works) >= 40
    for heading, text in works:
        assert re.search(r"\b(19|20)\d\d\b", heading), heading
        identifier = r"\d{4}\.\d{4,5}|doi 10\.\d{4,}/\S+|openreview \S+|https?://|paper [0-9a-f]{32}"
        assert re.search(identifier, heading), heading
        state = re.search(r"\*Cost:\* .+ \*Fails:\* .+ \*Here:\* (.+)", text)
        assert state, heading
        assert re.search(r"\*\*(compared|implemented|not implemented)\*\*", state.group(1)), heading
        assert not re.search(r"\*\*not implemented\*\*\.?$", state.group(1)), f"{heading}: no reason why"
        # A number of passes, and not what training costs.
        cost = re.search(r"\*Cost:\* (.+?) \*Fails:", text).group(1)
        assert re.search(r"(\d|\bn\b|\bone\b).*\bF\b", cost), f"{heading}: no passes for an image and a class: {cost}"


def test_works_that_the_survey_calls_compared_name_what_was_measured():
    named = set()
    for heading, text in entries():
        for brackets in re.findall(r"\*\*compared\*\*(?: \((.+?)\))?", text):
            found = re.findall(r"`(\w+)`", brackets)
            assert found, f"{heading}: names no method or number"
            assert set(found) <= measured(), f"{heading}: {set(found) - measured()} is in no stored comparison"
            named |= set(found)
    # And the other way round: methods of others that were measured are called compared. The U-Net's masks are ours,
    # those of one that was trained on its scores alone too.
    methods = {m for c in read_comparisons().values() for m in c.methods if m not in c.controls}
    ours = {"learned", "learned_of_classifier"}
    assert {m for m in methods - ours if not m.endswith("_of_self_explainer")} <= named


def test_citation_can_be_read_and_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= set(citation)
    assert citation["version"] == selfexplain_jax.__version__
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


@pytest.mark.slow
def test_documents_build_without_a_warning(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "docs.sh"), str(tmp_path / "site")],
        env=os.environ | {"SELFEXPLAIN_DOCS_VENV": os.environ.get("SELFEXPLAIN_DOCS_VENV", str(ROOT / ".venv-docs"))},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "theory.html").read_text()
    assert "<math" in page and "$" not in re.sub(r"<(script|code).*?</\1>", "", page, flags=re.DOTALL)
    assert (tmp_path / "site" / "reference" / "selfexplain_jax.objectives.terms.html").exists()
