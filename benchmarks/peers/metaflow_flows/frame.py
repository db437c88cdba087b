"""A data frame through three steps of Metaflow."""

from metaflow import FlowSpec, step
from workloads import double_frame, frame_mean, make_frame


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


if __name__ == "__main__":
    FrameFlow()
