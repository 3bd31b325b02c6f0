"""Pieces of a self-contained HTML report: figures, pictures, tables, audio players, marked transcripts.

Each function turns plain data into a string of HTML; nothing is fetched when the page is opened.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

STYLE = """
:root{--ink:#1f2933;--dim:#6b7280;--line:#e5e7eb;--card:#fff;--page:#f6f7f9;--good:#18794e;--bad:#c2341d}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}h1{font-size:26px;margin:0}h2{font-size:18px;margin:36px 0 6px}
p.note{color:var(--dim);margin:2px 0 12px;max-width:75ch}section.card,div.figure{background:var(--card);border:1px solid
var(--line);border-radius:10px;padding:14px}div.figures{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0}div.figure{flex:1 1
120px;min-width:120px}div.figure b{display:block;font-size:24px}div.figure span{color:var(--dim);font-size:13px}
img,svg{max-width:100%;height:auto;display:block}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:6px
10px;border-bottom:1px solid var(--line);vertical-align:middle}th{font-weight:600;color:var(--dim);font-size:13px}
audio{width:200px;height:32px}del{color:var(--bad)}ins{color:var(--bad);text-decoration:none;border-bottom:2px solid}
.ok{color:var(--good)}div.row{display:grid;grid-template-columns:repeat(3,1fr);gap:12px;margin-bottom:14px}
div.row h3{grid-column:1/-1;margin:0;font-size:15px}figure{margin:0}figcaption{color:var(--dim);font-size:13px}
pre{overflow:auto;font-size:12.5px;margin:0}section.scroll{overflow-x:auto}
svg{width:100%}svg text{font-family:system-ui,sans-serif!important}
td:first-child{white-space:nowrap}
summary{cursor:pointer;color:var(--dim);font-size:13.5px;padding:4px 0}.bad{color:var(--bad);font-weight:600}
"""


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole HTML document."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    top = f"<h1>{escape(title)}</h1><p class=note>{escape(subtitle)}</p>"
    style, body = f"<style>{STYLE}</style>", f"<main>{top}{''.join(sections)}</main>"
    return f"<!doctype html><html lang=en>{head}{style}{body}</html>\n"


def section(title: str, note: str, body: str) -> str:
    """A titled card; `note` says what one sees."""
    return f"<h2>{escape(title)}</h2><p class=note>{escape(note)}</p><section class='card scroll'>{body}</section>"


def note(content: str) -> str:
    """A remark between sections; nothing for an empty one."""
    return f"<p class=note>{escape(content)}</p>" if content else ""


def figures(values: Mapping[str, str]) -> str:
    """Key figures side by side: name -> value."""
    cells = [
        f"<div class=figure><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values.items()
    ]
    return f"<div class=figures>{''.join(cells)}</div>"


def spectrogram(wave: "torch.Tensor", sample_rate: int) -> str:
    """Log-mel picture of [T] samples as an <img>."""
    from matplotlib.figure import Figure

    from ttt_dist.audio.logmel import LogMel

    logmel = LogMel(sample_rate, 64)
    frames = logmel(wave[: len(wave) // logmel.frame * logmel.frame]).T.numpy()
    figure = Figure(figsize=(4, 1.5), layout="constrained")
    axis = figure.subplots()
    extent = (0, max(len(wave) / sample_rate, 0.01), 0, sample_rate / 2000)
    axis.imshow(frames, origin="lower", aspect="auto", cmap="magma", extent=extent)
    axis.set_xlabel("s", fontsize=8)
    axis.set_ylabel("kHz (mel)", fontsize=8)
    axis.set_yticks([])
    axis.tick_params(labelsize=8)
    return png(figure)


def player(path: Path) -> str:
    """An audio player with the file inside the page."""
    return player_of(path.read_bytes(), path.suffix[1:])


def player_of(content: bytes, kind: str) -> str:
    """An audio player of a file's bytes; `kind` is wav or flac."""
    data = base64.b64encode(content).decode()
    return f"<audio controls preload=none src='data:audio/{kind};base64,{data}'></audio>"


def captioned(title: str, caption: str, *parts: str) -> str:
    """One column of a comparison."""
    return f"<figure><figcaption><b>{escape(title)}</b> {escape(caption)}</figcaption>{''.join(parts)}</figure>"


def row(title: str, columns: Sequence[str]) -> str:
    """Columns side by side under a heading."""
    return f"<div class=row><h3>{escape(title)}</h3>{''.join(columns)}</div>"


def marked(reference: str, hypothesis: str) -> str:
    """The hypothesis with its errors: deleted words struck out, inserted or substituted ones underlined."""
    import jiwer

    if not reference.split():
        return f"<ins>{escape(hypothesis)}</ins>"
    aligned = jiwer.process_words(reference, hypothesis)
    wanted, heard = aligned.references[0], aligned.hypotheses[0]
    parts = []
    for chunk in aligned.alignments[0]:
        gone = escape(" ".join(wanted[chunk.ref_start_idx : chunk.ref_end_idx]))
        new = escape(" ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]))
        if chunk.type == "equal":
            parts.append(f"<span class=ok>{new}</span>")
        else:
            parts += [f"<del>{gone}</del>"] * bool(gone) + [f"<ins>{new}</ins>"] * bool(new)
    return " ".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def svg(figure: "Figure") -> str:
    """A figure as inline SVG, in the page's own font."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


def png(figure: "Figure") -> str:
    """A figure as an <img> with the picture inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return image(buffer.getvalue())


def image(data: bytes) -> str:
    """PNG bytes as an <img>."""
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(data).decode()}'>"


def plain(content: str, is_bad: bool = False) -> str:
    """Text as a cell of a table; bad news stands out."""
    return f"<span class=bad>{escape(content)}</span>" if is_bad else escape(content)


def text(content: str) -> str:
    """Preformatted text."""
    return f"<pre>{escape(content)}</pre>"


def folded(title: str, body: str) -> str:
    """A body that a click opens."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def word_errors(reference: str, hypothesis: str) -> float:
    """Word error rate of one pair, for sorting; an empty reference counts its insertions."""
    import jiwer

    if not reference.split():
        return float(len(hypothesis.split()))
    return float(jiwer.wer(reference, hypothesis))
