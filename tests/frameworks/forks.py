"""One question after the other to a library whose globals do not survive an answer, each in a fork of this process."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def answer_in_a_fork(ask: Callable[[Question], Answer], question: Question) -> Answer:
    """Return the answer; raise where the process dies without one."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(ask, question, sending))
    process.start()
    sending.close()
    try:
        answer: Answer = receiving.recv()
    except EOFError:
        process.join()
        raise ChildProcessError(f"exit code {process.exitcode}") from None
    process.join()
    return answer


def _in_child(ask: Callable[[Question], Answer], question: Question, connection: Connection) -> None:
    connection.send(ask(question))
    connection.close()
    # All is said: what threads of a library do at the interpreter's end is of no concern.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
