"""The workloads in Metaflow: flows run by its own Runner, with the local data store."""

import os

from metaflow import FlowSpec, Parameter, Runner, step
from workloads import Read, double_frame, frame_mean, main, make_frame, unsupported


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


class FrameFlow(FlowSpec):
    @step
    def start(self):
        self.frame = make_frame()
        self.next(self.double)

    @step
    def double(self):
        self.doubled = double_frame(self.frame)
        self.next(self.end)

    @step
    def end(self):
        self.result = frame_mean(self.doubled)


FLOWS = {"chain": ChainFlow, "fan_out": FanOutFlow, "frame": FrameFlow}


def run(flow: str, **parameters: int) -> Read:
    with Runner(__file__, env=os.environ | {"PEERS_FLOW": flow}, show_output=True) as runner:
        running = runner.run(max_num_splits=1000, **parameters)
        if running.status != "successful":
            raise RuntimeError(f"{flow} {running.status}")
        result = running.run.data.result
    return lambda: result


def chain(start: int, n: int) -> Read:
    return run("chain", start_value=start, steps=n)


def fan_out(start: int, n: int) -> Read:
    return run("fan_out", start_value=start, steps=n)


def frame(start: int, n: int) -> Read:
    return run("frame")


NO_CACHE = "a second run computes every step again; only `resume` of a failed run reuses results"

if __name__ == "__main__":
    if "PEERS_FLOW" in os.environ:
        FLOWS[os.environ["PEERS_FLOW"]]()
    else:
        main({"chain": chain, "fan_out": fan_out, "cached": unsupported(NO_CACHE), "frame": frame})
