"""The figures of all phases as files: one JSON, and Markdown as benchmarks/results has it; and their last line on stdout."""

import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.bars import judged
from benchmarks.gpu.phases import PHASES

LONGEST_LINE = 8800  # characters of the summary, so that all of stdout stays below 12,000
DIGITS = 4


@dataclass
class Outcome:
    """What came of one phase."""

    status: str
    """`ok`, or why it ended otherwise."""
    seconds: float
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By measurement."""


@dataclass
class Report:
    """All that is known so far."""

    device: str
    command: str
    revision: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def bars(self) -> dict[str, dict[str, Any]]:
        """What was wanted, and is; nothing of a toy."""
        found = {name: outcome.figures for name, outcome in self.outcomes.items()}
        return judged(found) if self.device == "cuda" else {}

    def write(self, folder: Path) -> None:
        """DIR/gpu.json and DIR/DATE-gpu.md, anew after every phase."""
        whole = {"command": self.command, "revision": self.revision, "bars": self.bars, "phases": self._phases()}
        (folder / "gpu.json").write_text(json.dumps(rounded(whole), indent=1) + "\n", encoding="utf8")
        (folder / f"{datetime.date.today()}-gpu.md").write_text("\n".join(self.markdown()) + "\n", encoding="utf8")

    def summary(self) -> dict[str, Any]:
        """Every single figure; lists and tables are in gpu.json."""
        phases = self._phases()
        for phase in phases.values():
            phase["figures"] = {name: _scalars(figures) for name, figures in phase["figures"].items()}
        bars = {what: [bar["value"], bar["met"]] for what, bar in self.bars.items()}
        short: dict[str, Any] = rounded({"revision": self.revision, "bars": bars, "phases": phases})
        for name in reversed(phases):  # what is worth least goes first
            if len(json.dumps(short)) > LONGEST_LINE:
                short["phases"][name] = phases[name]["status"]
        return short

    def markdown(self) -> list[str]:
        """Lines of the result file."""
        machine = self.outcomes["machine"].figures if "machine" in self.outcomes else {}
        lines = ["# One GPU", "", machine.get("hardware", {}).get("line", f"- Date {datetime.date.today()}")]
        lines += [
            f"- {_text(_scalars(machine.get('versions', {})))}",
            f"- Revision {self.revision}",
            f"- Command: `{self.command}`",
            "",
        ]
        if self.device == "cpu":
            lines.append("A toy model on the CPU: the figures mean nothing, and no bar applies.")
        else:
            lines += ["| what | wanted | is | met |", "|---|---|---|---|"]
        for what, bar in rounded(self.bars).items():
            met = {None: "not measured", True: "yes", False: "no"}[bar["met"]]
            lines.append(f"| {what} | {bar['wanted']} | {'' if bar['value'] is None else bar['value']} | {met} |")
        for name, outcome in self.outcomes.items():
            lines += ["", f"## {name}: {PHASES[name].about}", "", f"{outcome.status}, {outcome.seconds:.0f} s", ""]
            lines += [
                f"- {key}: {_text(figures)}"
                for key, figures in rounded(outcome.figures).items()
                if key not in ("hardware", "versions")
            ]
        return [*lines, "", "What the figures mean: benchmarks/README.md."]

    def _phases(self) -> dict[str, Any]:
        return {
            name: {"status": outcome.status, "seconds": outcome.seconds, "figures": outcome.figures}
            for name, outcome in self.outcomes.items()
        }


def rounded(value: Any) -> Any:
    """With floats of four digits, whatever they are in."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _scalars(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if not isinstance(value, dict | list) and key != "took_s"}


def _text(figures: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in figures.items() if value is not None)
