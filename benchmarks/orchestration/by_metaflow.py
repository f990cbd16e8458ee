"""The eight stages as Metaflow's steps: `python by_metaflow.py run`. Metaflow runs each step in a process.

Metaflow requires steps named `start` and `end`: they run `ingest` and `promote`.
"""

from __future__ import annotations

from metaflow import FlowSpec, step


class Digits(FlowSpec):
    @step
    def start(self) -> None:
        import steps

        self.raw_rows = steps.ingest()
        self.next(self.validate)

    @step
    def validate(self) -> None:
        import steps

        self.valid_rows = steps.validate(self.raw_rows)
        self.next(self.prepare)

    @step
    def prepare(self) -> None:
        import steps

        self.dataset = steps.prepare(self.valid_rows)
        self.next(self.train)

    @step
    def train(self) -> None:
        import steps

        self.trained = steps.train(self.dataset)
        self.next(self.compress)

    @step
    def compress(self) -> None:
        import steps

        self.candidates = steps.compress(self.trained)
        self.next(self.choose)

    @step
    def choose(self) -> None:
        import steps

        self.choice = steps.choose(self.candidates)
        self.next(self.package)

    @step
    def package(self) -> None:
        import steps

        self.bento = steps.package(self.choice)
        self.next(self.end)

    @step
    def end(self) -> None:
        import steps

        self.release = steps.promote(self.bento)


if __name__ == "__main__":
    Digits()
