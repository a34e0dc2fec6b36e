"""The README says what the code does: its table is made from the results, its commands and names exist."""

import re
import subprocess
import sys
from pathlib import Path

import telos
from telos.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_table_is_up_to_date():
    subprocess.run([sys.executable, ROOT / "docs" / "readme.py", "--check"], check=True)


def test_files_that_it_links_to_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)


def test_its_commands_and_names_exist():
    verbs = set(re.findall(r"^    telos (\w+)", TEXT, re.M))
    assert verbs and verbs <= set(VERBS)
    for name in set(re.findall(r"\btelos\.([A-Za-z_]+)\(", TEXT)):
        assert getattr(telos, name)
