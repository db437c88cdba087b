"""A type, and how its values are stored."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from zenray import Materializer
from zenray.materializer import ArtifactReader, ArtifactWriter


class Polynomial:
    """A polynomial by its coefficients, the constant first."""

    def __init__(self, coefficients: Sequence[float]) -> None:
        self.coefficients = tuple(map(float, coefficients))

    def __call__(self, x: float) -> float:
        return sum(c * x**i for i, c in enumerate(self.coefficients))

    def __add__(self, other: "Polynomial") -> "Polynomial":
        size = max(len(self.coefficients), len(other.coefficients))
        padded = [[*p.coefficients, *[0.0] * (size - len(p.coefficients))] for p in (self, other)]
        return Polynomial([a + b for a, b in zip(*padded, strict=True)])

    def __mul__(self, other: "Polynomial") -> "Polynomial":
        product = [0.0] * (len(self.coefficients) + len(other.coefficients) - 1)
        for i, a in enumerate(self.coefficients):
            for j, b in enumerate(other.coefficients):
                product[i + j] += a * b
        return Polynomial(product)


class PolynomialMaterializer(Materializer):
    """Stores a polynomial as JSON. Equal values give equal bytes, so that what is below stays cached."""

    # By name, so that ZenRay need not import this module to know what it serves.
    types: ClassVar[tuple[str, ...]] = ("own_components.polynomial.Polynomial",)

    def save(self, value: Polynomial, writer: ArtifactWriter) -> None:
        """Write the one file."""
        writer.put("coefficients.json", json.dumps(value.coefficients).encode())

    def load(self, reader: ArtifactReader, cls: type, metadata: Mapping[str, Any]) -> Polynomial:
        """Read it back."""
        return Polynomial(json.loads(reader.read("coefficients.json")))

    def preview(self, value: Polynomial) -> Mapping[str, Any]:
        """Show the degree in `zenray artifact show`."""
        return {"degree": len(value.coefficients) - 1}
