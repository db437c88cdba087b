"""Fits a parabola through three points, and evaluates it: the pipeline knows nothing of where it runs."""

from own_components.polynomial import Polynomial

import zenray
from zenray import pipeline, step


@step
def fit(points: list[list[float]]) -> Polynomial:
    """Return the polynomial of least degree through points (Lagrange)."""
    total = Polynomial([0.0])
    for i, (x_i, y_i) in enumerate(points):
        basis = Polynomial([y_i])
        for j, (x_j, _) in enumerate(points):
            if i != j:
                basis = basis * Polynomial([-x_j / (x_i - x_j), 1 / (x_i - x_j)])
        total = total + basis
    zenray.log_metadata(degree=len(points) - 1)
    return total


@step
def value_at(curve: Polynomial, x: float) -> float:
    tracker = zenray.context().tracker
    if tracker is not None:
        tracker.log_one("x", x)  # straight from the step
    return curve(x)


@pipeline
def parabola(x: float = 3.0):
    curve = fit([[0.0, 1.0], [1.0, 2.0], [2.0, 5.0]])  # 1 + x²
    return value_at(curve, x)
