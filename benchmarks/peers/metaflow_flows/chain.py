"""A chain of steps in Metaflow: a step that comes back to itself."""

from metaflow import FlowSpec, Parameter, step


class ChainFlow(FlowSpec):
    start_value = Parameter("start_value", type=int)
    steps = Parameter("steps", type=int)

    @step
    def start(self):
        self.value = self.start_value
        self.next(self.increment)

    @step
    def increment(self):
        self.value += 1
        self.more = "yes" if self.value < self.start_value + self.steps else "no"
        self.next({"yes": self.increment, "no": self.end}, condition="more")

    @step
    def end(self):
        self.result = self.value


if __name__ == "__main__":
    ChainFlow()
