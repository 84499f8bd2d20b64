"""HTML that several sections of the page share: paragraphs, pairs, tables, galleries.

Everything that comes from outside (class names, captions, flags) is given as plain text and escaped here.
"""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from report.tables import show, words

PICTURE_SIDE, PICTURE_BYTES = 1600, 150_000  # beyond either, a picture is embedded as a smaller JPEG


def escape_words(name):
    """A name as a person says it, escaped."""
    return escape(words(name))


def safe(text):
    """Text for the page: escaped, and no line of it begins with a percent sign."""
    return escape(text).replace(" %", "\u00a0%")


def paragraph(text, kind=""):
    """Text as a paragraph, "" where there is none; kind: its class in the style sheet."""
    start = f'<p class="{kind}">' if kind else "<p>"
    return f"{start}{safe(text)}</p>" if text else ""


def numbered(head, texts):
    """Texts as a numbered list under its head, "" where there are none."""
    items = "".join(f"<li>{safe(text)}</li>" for text in texts)
    return f"<p>{head}:</p><ol>{items}</ol>" if items else ""


def pairs(items):
    """Names and values [(name, any JSON value)] side by side, in as many columns as fit."""
    rows = "".join(f"<div><dt>{escape_words(name)}</dt><dd>{escape(show(value))}</dd></div>" for name, value in items)
    return f'<dl class="pairs">{rows}</dl>'


def table(kind, heads, rows, numeric=None):
    """A table of plain text, numbers to the right.

    kind: its class in the style sheet; heads, rows: the cells; numeric: whether each column holds numbers, None: all
    but the first do.
    """
    numeric = numeric or [False] + [True] * (len(heads) - 1)
    styles = [' class="n"' if number else "" for number in numeric]

    def line(cells, tag):
        parts = (f"<{tag}{style}>{escape(cell)}</{tag}>" for cell, style in zip(cells, styles, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    return f'<table class="{kind}">{line(heads, "th")}{"".join(line(row, "td") for row in rows)}</table>'


def scroll(content):
    """HTML that may be wider than the screen."""
    return f'<div class="scroll">{content}</div>'


def fold(summary, content, kind="", opened=False):
    """HTML behind a summary (HTML) that unfolds it; kind: its class in the style sheet."""
    start = f'<details class="{kind}">' if kind else f"<details{' open' * opened}>"
    return f"{start}<summary>{summary}</summary>{content}</details>"


def embed(path):
    """A picture file as a data address: (address, width); a big one smaller and as JPEG."""
    data = Path(path).read_bytes()
    image = Image.open(io.BytesIO(data))
    kind = image.format.lower()
    if max(image.size) > PICTURE_SIDE or len(data) > PICTURE_BYTES:
        image = image.convert("RGB")
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85, subsampling=0)  # thin lines keep their colour
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", image.width


def gallery(pictures):
    """The pictures [(caption, file)] under their captions; one that cannot be read is named instead."""
    parts = []
    for caption, path in pictures:
        try:
            address, width = embed(path)
            how = 'class="wide"' if width > 900 else f'style="max-width:{max(width, 480)}px"'  # a small one stays small
            shown = scroll(f'<img {how} src="{address}" alt="{escape(caption)}">')
        except OSError:
            shown = f'<p class="note">{escape(Path(path).name)} cannot be read</p>'
        parts.append(f"<figure><figcaption>{escape(caption)}</figcaption>{shown}</figure>")
    return "".join(parts)
