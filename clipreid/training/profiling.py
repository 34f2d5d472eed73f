"""`--profile`: a trace of a few steps of every stage."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile, schedule

from clipreid.evaluation.tables import format_table
from clipreid.hub.files import PROFILE
from clipreid.training.run import Run
from clipreid.training.stage import Stage

WARM, TRACED = 2, 3  # steps
SHOWN = 10  # operators


class StageProfile:
    """Traces steps WARM + 1 to WARM + TRACED of a stage (fewer where it is shorter), on the main
    process.

    The trace is `profile/STAGE.json` in the run folder, for ui.perfetto.dev; the operators that take the
    longest go into the log.

    steps: how many this process will take.
    """

    def __init__(self, stage: Stage, run: Run, steps: int) -> None:
        self.stage, self.run, self.traced = stage, run, min(TRACED, max(1, steps - 1))
        warm = min(WARM, steps - self.traced)
        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (run.device.type == "cuda")]
        wait, warmup = max(0, warm - 1), min(1, warm)
        when = schedule(wait=wait, warmup=warmup, active=self.traced, repeat=1)
        self.left = warm + self.traced
        self.profiler = profile(activities=kinds, schedule=when, on_trace_ready=self._write) if run.main else None
        if self.profiler is not None:
            self.profiler.start()

    def step(self) -> None:
        """Behind every step."""
        if self.profiler is None:
            return
        self.profiler.step()
        self.left -= 1
        if not self.left:
            self.profiler.stop()
            self.profiler = None

    def _write(self, profiler: profile) -> None:
        folder = self.run.folder / PROFILE
        folder.mkdir(exist_ok=True)
        file = folder / f"{self.stage.name}.json"
        profiler.export_chrome_trace(str(file))
        device = self.run.device.type == "cuda"
        found = [
            (each.key, each.count, (each.self_device_time_total if device else each.self_cpu_time_total) / 1000)
            for each in profiler.key_averages()
            if not each.key.startswith("ProfilerStep")
        ]
        whole = max(sum(spent for _, _, spent in found), 1e-9)
        top = sorted(found, key=lambda each: each[2], reverse=True)[:SHOWN]
        rows = [
            {
                "operator": name,
                "calls": round(count / self.traced, 1),
                "ms": round(spent / self.traced, 2),
                "share": f"{spent / whole:.1%}",
            }
            for name, count, spent in top
        ]
        self.run.log.write("profile", 0, of=self.stage.name, operators=rows)
        self.run.log.say(f"{self.stage.name}  per step, of {self.traced}:\n{format_table(rows)}\ntrace: {file}")
