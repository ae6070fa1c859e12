"""What the figures of the documents are made of: a page that follows the reader's light or dark one, and text."""

from collections.abc import Iterable

WIDTH = 672  # pixels, of every figure but the overview
STYLE = """<style>
text { font: 13px sans-serif; fill: #1f2328 } .small { font-size: 11px } .title { font-weight: bold }
.on { fill: #ffffff; font-weight: bold } .page { fill: #ffffff }
.line { stroke: #57606a; fill: none } .head { fill: #57606a } .empty { fill: #8c959f; fill-opacity: .25 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .on { fill: #ffffff } .page { fill: #0d1117 }
.line { stroke: #9da7b3 } .head { fill: #9da7b3 } }
</style>"""


def svg(height: int, parts: Iterable[str], label: str, width: int = WIDTH) -> str:
    page = '<rect width="100%" height="100%" class="page"/>'
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'role="img" aria-label="{label}">\n{STYLE}\n{page}\n{body}\n</svg>\n')


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{words}</text>'
