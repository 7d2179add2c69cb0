"""How bytes move: child processes, the stream's chunks, segments both ways.

On a backup: ``process`` runs the tool, ``split`` cuts its stream at chunk
boundaries, ``codec`` compresses, a ``crew`` of workers does all that in
parallel.  On a restore the crew decodes segments and ``extract`` writes their
chunks to files, in any order.  Nothing here knows a store, a tool or a backup:
callers hand in functions that put and fetch.
"""
