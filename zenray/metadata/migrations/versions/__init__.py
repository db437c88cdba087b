"""One file for each revision of the tables, oldest first; released ones are never changed.

Runs in: driver.
"""
