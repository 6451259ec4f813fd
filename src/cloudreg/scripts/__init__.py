"""The interface of CloudReg 1 (2021), on the new engine: old scripts run, and what a module does now lives elsewhere.

Every module warns once, when it is imported, and names the new way; ``docs/migrating.md`` says what differs. Nothing
outside this package imports it.
"""
