"""Writes the catalogue's table into README.md from the methods' headers and the recorded results.

python docs/readme.py [--check]     with --check it changes nothing and exits with 1 if the table is out of date
"""

import re
import sys
from pathlib import Path

from telos.catalogue import baselines, headline, papers
from telos.core.files import write_atomic
from telos.judge.results import read_results

README = Path(__file__).resolve().parent.parent / "README.md"


def effect(slug: str) -> str:
    """The first part of the laptop claim that has an interval, with it, or nothing."""
    result = read_results().get((slug, "laptop"))
    if result is None:
        return ""
    part = headline(result)
    if part is None:
        return ""
    interval = part["interval"]
    return f"{part['text']}: {interval['estimate']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def table() -> str:
    """Markdown: papers that can be run, then the baselines."""
    lines = ["| paper | arXiv | verdict | measured | what it does |", "|---|---|---|---|---|"]
    for row in papers():
        if row["available"]:
            link = f"[{row['arxiv']}]({row['url']})"
            lines.append(f"| `{row['slug']}` | {link} | {row['verdict']} | {effect(row['slug'])} | {row['summary']} |")
    named = ", ".join(f"`{row['slug']}`" for row in baselines())
    return "\n".join([*lines, "", f"Baselines, without a claim of their own: {named}."])


def main() -> int:
    text = README.read_text()
    fresh = re.sub(
        r"(<!-- catalogue -->\n).*?(<!-- /catalogue -->)",
        lambda found: f"{found[1]}{table()}\n{found[2]}",
        text,
        flags=re.S,
    )
    if "--check" in sys.argv:
        return int(fresh != text)
    write_atomic(README, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
