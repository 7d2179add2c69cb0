"""The outbox: messages that are written down first, sent in order, and kept until somebody has taken them.

Whatever a control plane must learn is a file before anyone tries to send it.  A newer message on the same subject
takes the place of the older one, since each says all that is known; so the outbox stays as small as what it is about.

- stamps: times that only increase, by which a receiver knows what is newer
- box: the messages on disk
- postman: the thread that sends them, and the heartbeat

Nothing here knows what a message is about, or how it travels.
"""
