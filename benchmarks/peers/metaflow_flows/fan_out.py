"""A foreach in Metaflow."""

from metaflow import FlowSpec, Parameter, step


class FanOutFlow(FlowSpec):
    start_value = Parameter("start_value", type=int)
    steps = Parameter("steps", type=int)

    @step
    def start(self):
        self.values = list(range(self.start_value, self.start_value + self.steps))
        self.next(self.identity, foreach="values")

    @step
    def identity(self):
        self.value = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.result = [task.value for task in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    FanOutFlow()
