"""Pieces of a self-contained HTML report: figures, pictures, tables, audio players, marked transcripts.

Each gives HTML (`Markup`) of plain data, by the templates beside this file: strings are escaped, HTML of other pieces is put
in as it is. Nothing is fetched when the page is opened.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from markupsafe import Markup
    from matplotlib.figure import Figure


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("ttt_dist.evaluation")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _piece(name: str, *values: Any) -> "Markup":
    """A macro of pieces.html."""
    made: Markup = getattr(_templates().get_template("pieces.html").module, name)(*values)
    return made


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole HTML document."""
    return str(_templates().get_template("page.html").render(title=title, subtitle=subtitle, sections=sections)) + "\n"


def section(title: str, note: str, body: str) -> "Markup":
    """A titled card; `note` says what one sees."""
    return _piece("section", title, note, body)


def note(content: str) -> "Markup":
    """A remark between sections; nothing for an empty one."""
    return _piece("note", content)


def figures(values: Mapping[str, str]) -> "Markup":
    """Key figures side by side: name -> value."""
    return _piece("figures", values)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> "Markup":
    """A table of texts and pieces."""
    return _piece("table", header, rows)


def spectrogram(wave: "torch.Tensor", sample_rate: int) -> "Markup":
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


def player(path: Path) -> "Markup":
    """An audio player with the file inside the page."""
    return player_of(path.read_bytes(), path.suffix[1:])


def player_of(content: bytes, kind: str) -> "Markup":
    """An audio player of a file's bytes; `kind` is wav or flac."""
    return _piece("player", kind, base64.b64encode(content).decode())


def captioned(title: str, caption: str, *parts: str) -> "Markup":
    """One column of a comparison."""
    return _piece("captioned", title, caption, parts)


def row(title: str, columns: Sequence[str]) -> "Markup":
    """Columns side by side under a heading."""
    return _piece("row", title, columns)


def marked(reference: str, hypothesis: str) -> "Markup":
    """The hypothesis with its errors: deleted words struck out, inserted or substituted ones underlined."""
    import jiwer

    if not reference.split():
        return _piece("marked", [(False, "", hypothesis)])
    aligned = jiwer.process_words(reference, hypothesis)
    wanted, heard = aligned.references[0], aligned.hypotheses[0]
    chunks = [
        (
            chunk.type == "equal",
            " ".join(wanted[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in aligned.alignments[0]
    ]
    return _piece("marked", chunks)


def lines(cells: Sequence[str]) -> "Markup":
    """Texts below one another."""
    return _piece("lines", cells)


def chat(turns: Iterable[tuple[str, str]]) -> "Markup":
    """Questions, each with its answer below it."""
    return _piece("chat", list(turns))


def svg(figure: "Figure") -> "Markup":
    """A figure as inline SVG, in the page's own font."""
    from markupsafe import Markup
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup("".join(buffer.getvalue().partition("<svg")[1:]))


def png(figure: "Figure") -> "Markup":
    """A figure as an <img> with the picture inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return image(buffer.getvalue())


def image(data: bytes) -> "Markup":
    """PNG bytes as an <img>."""
    return _piece("image", base64.b64encode(data).decode())


def bad(content: str) -> "Markup":
    """Text that stands out as bad news."""
    return _piece("bad", content)


def text(content: str) -> "Markup":
    """Preformatted text."""
    return _piece("text", content)


def folded(title: str, body: str) -> "Markup":
    """A body that a click opens."""
    return _piece("folded", title, body)


def joined(pieces: Iterable[str]) -> "Markup":
    """Pieces one after the other."""
    from markupsafe import Markup

    return Markup("").join(pieces)


def word_errors(reference: str, hypothesis: str) -> float:
    """Word error rate of one pair, for sorting; an empty reference counts its insertions."""
    import jiwer

    if not reference.split():
        return float(len(hypothesis.split()))
    return float(jiwer.wer(reference, hypothesis))
