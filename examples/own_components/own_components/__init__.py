"""Components of one's own for ZenRay; see README.md."""
