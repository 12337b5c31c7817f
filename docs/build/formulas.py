"""Formulas as MathML, which browsers draw by themselves: no script, no font and no network.

The documents write them as GitHub reads them most safely: inline between $` and `$, displayed as code blocks `math`.
"""

import html
import re

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`(.+?)`\$", re.DOTALL)
MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown, **_):
    """Writes formulas as the extension arithmatex knows them."""
    return INLINE.sub(lambda match: f"${match[1]}$", BLOCK.sub(lambda match: f"$$\n{match[1]}\n$$", markdown))


def on_page_content(content, **_):
    """Replaces each formula that arithmatex has marked; a formula that cannot be converted stops the build."""
    return MARKED.sub(_mathml, content)


def _mathml(match):
    display = "block" if match[2] == "[" else "inline"
    mathml = convert(html.unescape(match[3]).strip(), display=display)
    # The sign for the difference of sets is in few fonts.
    return mathml.replace("&#x029F5;", "&#x5C;")
