"""The host's side of a restore: directories and files of a datadir, nothing else.

Here live what stands at a target (``place``), the room that a restore works in
(``staging``), the exchange of old data for new (``swap``), and the agent's own
id in the datadir (``incarnation``).  No store, no tool and no SQL is known here.

Everything of ours in a datadir is one file (``incarnation``) and, while a
restore runs or old data are kept, one directory (``layout``).
"""
