"""Makes the pages that are not written by hand: the start page from README.md, and a page of reference per module."""

import pathlib
import re

import mkdocs_gen_files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _on_the_site(link: re.Match) -> str:
    """A link of README.md as one of the site: into docs/, to elsewhere, or, if it leads to another file, its text."""
    text, target = link.groups()
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    return link[0] if re.match(r"#|\w+:", target) else text


readme = re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", _on_the_site, (ROOT / "README.md").read_text())
with mkdocs_gen_files.open("index.md", "w") as page:
    page.write(readme)

modules = []
for file in sorted((ROOT / "selfexplain_jax").rglob("*.py")):
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    modules.append(name)
    with mkdocs_gen_files.open(f"reference/{name}.md", "w") as page:
        page.write(f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n")
with mkdocs_gen_files.open("reference/index.md", "w") as page:
    page.write("# API reference\n\nRead from the docstrings.\n\n")
    page.writelines(f"- [{name}]({name}.md)\n" for name in modules)
