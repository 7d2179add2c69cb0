"""Jobs: what this host was asked to do, does and did; one at a time, and none forgotten.

- record: what a job is, and how it stands
- ledger: the records on disk, for every process of this host
- lock: one job at a time
- story: from a record to the operation that it asks for
- perform: one job from its beginning to its end, told in the ledger all the while
- settle: what is left of jobs whose process died
- pause: when to try again what did not work
- worker: the agent's thread that takes requests and performs them one after the other
"""
