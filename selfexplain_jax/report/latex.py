"""Tables for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfexplain_jax.report.failures import failed_cells
from selfexplain_jax.report.tables import best_cells, comparison_rows, contest, headline_numbers, is_number

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
} | {character: f"\\{character}" for character in "&%$#_{}"}
ARROWS = {"lower": r"~$\downarrow$", "higher": r"~$\uparrow$", None: ""}


def comparison_latex(results: Mapping[str, Any], numbers: Sequence[str] | None = None) -> str:
    r"""Returns the comparison as a LaTeX table for \usepackage{booktabs}, best values bold, spreads as $\pm$.

    Where something failed, cells without a number say so, and the last column counts the images that a method failed
    on. Numbers stand alone in their cells, because a page is not wider.

    Args:
      results: as in `tables.comparison_rows`; a number may be a `spread.Spread`.
      numbers: columns; default: those of `tables.HEADLINES` that there are, for the same reason.
    """
    header, rows = comparison_rows(results, headline_numbers(results) if numbers is None else numbers)
    best = best_cells(results, header, rows)
    said = failed_cells(results, header, rows)
    # A column of zeros says nothing.
    shown = [place for place, name in enumerate(header) if name != "failed" or any(row[place] for row in rows)]
    titles = [escape(header[p].replace("_", " ")) + (ARROWS[contest(header[p])] if p > 1 else "") for p in shown]
    controls = set(results.get("controls", ()))
    lines = [f"\\begin{{tabular}}{{ll{'r' * (len(shown) - 2)}}}", r"\toprule", _line(titles), r"\midrule"]
    ruled = not controls or all(row[0] in controls for row in rows)
    # Controls stand below a rule of their own.
    ordered = sorted(enumerate(rows), key=lambda numbered: numbered[1][0] in controls)
    for number, row in ordered:
        if row[0] in controls and not ruled:
            lines.append(r"\midrule")
            ruled = True
        lines.append(_line([_cell(row[place], (number, place) in best, said.get((number, place))) for place in shown]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    """Returns text that LaTeX sets as it is."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(value: Any, best: bool, said: str | None) -> str:
    if value is None:
        return escape(said) if said else "--"
    if is_number(value):
        text = f"{value:.3g}".replace("±", r"\pm") if isinstance(value, float) else str(value)
        return f"$\\mathbf{{{text}}}$" if best else f"${text}$"
    return escape(str(value))
