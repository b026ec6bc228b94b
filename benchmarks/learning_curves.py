"""Reward and held-out accuracy of runs against optimizer steps, as a picture, from their metrics.jsonl.

    for seed in 0 1 2; do python run_grpo.py --seed=$seed --eval_every_n_steps=5 --output_dir=runs/seed=$seed; done
    python benchmarks/learning_curves.py runs/seed=0 runs/seed=1 runs/seed=2

Nothing is smoothed: a line joins the values that were logged. Runs are named after their folders. Besides the picture
it prints the first, the last and the best accuracy of each run, and its seconds of training. It needs matplotlib, which
MLflow brings.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]
"""Optimizer steps, and a figure's value at each."""
PANELS = {
    "train/reward": "mean reward of the sampled completions",
    "val/accuracy": "greedy accuracy on held-out prompts",
}
OF_A_CRITIC = {"train/explained_variance_mc": "share of the rewards' variance that the critic foresees"}
"""A panel more, where a run has one."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind, too
PICTURE = Path("docs/pictures/grpo_sorting.png")


@dataclass(frozen=True)
class Run:
    name: str
    curves: dict[str, Curve]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> "Run":
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        if not rows:
            raise SystemExit(f"{folder}/metrics.jsonl is empty")
        curves = {name: curve(rows, name) for name in PANELS | OF_A_CRITIC}
        return cls(folder.name, curves, max(row["seconds"] for row in rows))

    def __str__(self) -> str:
        _, values = self.curves["val/accuracy"]
        if not values:
            return f"{self.name}: {self.seconds:.0f} s of training, not evaluated"
        first, last, best = (f"{value:.1%}" for value in (values[0], values[-1], max(values)))
        return f"{self.name}: accuracy {first} at first, {last} at last, {best} at best; {self.seconds:.0f} s"


def curve(rows: list[dict[str, float]], name: str) -> Curve:
    found = [(int(row["step"]), row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def draw(runs: list[Run]) -> Figure:
    panels = PANELS | (OF_A_CRITIC if any(run.curves[name][0] for run in runs for name in OF_A_CRITIC) else {})
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(panels), sharex=True), panels.items(), strict=True):
        for run, colour in zip(runs, COLOURS, strict=False):
            draw_curve(axes, run, name, colour)
        axes.set_title(f"{title}\n{name}", fontsize=10)
        axes.set_xlabel("optimizer steps")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=9)
    return figure


def draw_curve(axes: Axes, run: Run, name: str, colour: str) -> None:
    steps, values = run.curves[name]
    rare = name.startswith("val/")  # so few values that each is marked
    axes.plot(steps, values, color=colour, linewidth=0.9, marker="o" if rare else None, markersize=3, label=run.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    if len(options.runs) > len(COLOURS):
        parser.error(f"at most {len(COLOURS)} runs can be told apart, got {len(options.runs)}")
    runs = [Run.read(folder) for folder in options.runs]
    print(*runs, sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(runs).savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()
