"""RPC: the door through which a control plane and ``guestagent-ctl`` speak to the agent.

- checks: what a caller sent, looked at argument by argument
- places: which locations a caller may name
- orders: what both endpoints hand to the worker, and how they show a job
- ours: the endpoint in namespace ``backup``
- trove: the endpoint that Trove's own messages reach
- secure: Trove's optional encryption of messages
- dispatch: from a message to an endpoint's method, and every error as one line
- server: the server as a whole, started and stopped within bounds
- client: the other side of ``ours``
- wire: oslo.messaging's transport, opened for both sides

The endpoints translate words and hold no logic: work is for the worker, and answers come from operations.
"""
