"""The stories: backup, restore, verify, delete, sweep, doctor.

Each reads like a table of contents and works on a :class:`~guestagent.operations.host.Host`, which
holds everything that configuration decided.  Nothing here parses words or draws; doors do.
"""
