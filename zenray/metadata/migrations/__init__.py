"""Alembic's environment: how a database of an older ZenRay becomes one of this ZenRay.

Runs in: driver.
"""
