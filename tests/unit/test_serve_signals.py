"""What wakes the main thread: real signals, from outside and to other threads, storms of them, and rings."""

from __future__ import annotations

import os
import signal
import threading
import time

from guestagent.serve.signals import Signals

SOON = 30.0


def test_a_signal_is_noted_and_wakes() -> None:
    with Signals((signal.SIGTERM, signal.SIGHUP)) as signals:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP)).start()
        began = time.monotonic()
        assert signals.wait(SOON) == {signal.SIGHUP}
        assert time.monotonic() - began < SOON / 2
        assert signals.wait(0) == frozenset()


def test_a_signal_that_another_thread_gets_wakes_the_main_thread() -> None:
    over = threading.Event()
    other = threading.Thread(target=over.wait, args=(SOON,))
    with Signals((signal.SIGTERM,)) as signals:
        other.start()
        assert other.ident is not None
        threading.Timer(0.1, signal.pthread_kill, (other.ident, signal.SIGTERM)).start()
        began = time.monotonic()
        assert signals.wait(SOON) == {signal.SIGTERM}
        assert time.monotonic() - began < SOON / 2
        over.set()
        other.join()


def test_a_storm_is_one_of_each_and_none_is_lost() -> None:
    with Signals((signal.SIGTERM, signal.SIGHUP)) as signals:
        for _ in range(50_000):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.wait(SOON) == {signal.SIGTERM, signal.SIGHUP}
        assert signals.wait(0) == frozenset()


def test_a_ring_wakes_without_a_signal() -> None:
    with Signals((signal.SIGTERM,)) as signals:
        threading.Timer(0.1, signals.ring).start()
        began = time.monotonic()
        assert signals.wait(None) == frozenset()
        assert time.monotonic() - began < SOON


def test_time_passes_when_nothing_happens() -> None:
    with Signals((signal.SIGTERM,)) as signals:
        began = time.monotonic()
        assert signals.wait(0.2) == frozenset()
        assert 0.15 < time.monotonic() - began < SOON
        assert signals.wait(-1) == frozenset()


def test_rings_without_end_do_not_block_anybody() -> None:
    with Signals((signal.SIGTERM,)) as signals:
        for _ in range(100_000):
            signals.ring()
        assert signals.wait(SOON) == frozenset()
    signals.ring()


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals((signal.SIGTERM,)):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_no_signal_is_blocked_since_children_would_inherit_that() -> None:
    with Signals((signal.SIGTERM, signal.SIGINT)):
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}
