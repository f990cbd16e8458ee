"""The eight stages as Metaflow's steps: `python by_metaflow.py run`. Metaflow runs each step in a process.

Metaflow requires the names `start` and `end`, which are our first and last stage.
"""

from __future__ import annotations

from metaflow import FlowSpec, step


class Digits(FlowSpec):
    @step
    def start(self):
        import steps

        self.rows = steps.ingest()
        self.next(self.validate)

    @step
    def validate(self):
        import steps

        self.checked = steps.validate(self.rows)
        self.next(self.prepare)

    @step
    def prepare(self):
        import steps

        self.dataset = steps.prepare(self.checked)
        self.next(self.train)

    @step
    def train(self):
        import steps

        self.trained = steps.train(self.dataset)
        self.next(self.compress)

    @step
    def compress(self):
        import steps

        self.options = steps.compress(self.trained)
        self.next(self.choose)

    @step
    def choose(self):
        import steps

        self.chosen = steps.choose(self.options)
        self.next(self.package)

    @step
    def package(self):
        import steps

        self.bento = steps.package(self.chosen)
        self.next(self.end)

    @step
    def end(self):
        import steps

        self.release = steps.promote(self.bento)


if __name__ == "__main__":
    Digits()
