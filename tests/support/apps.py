"""Small ClientApps for tests of grids and workers: module-level, so that a spawned process can import them."""

from __future__ import annotations

import gc
import os
import signal
import struct
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp


def question(node: int, *, kind: str = MessageType.TRAIN, size: int = 0, **values: str | int) -> Message:
    """Return a message with some values and an array of `size` float32."""
    content = RecordDict({"values": ConfigRecord(dict(values))})
    if size:
        content["array"] = ArrayRecord([np.ones(size, np.float32)])
    return Message(content, node, kind)


def answer(reply: Message) -> dict[str, str | int]:
    """Return the values of a reply."""
    return dict(reply.content.config_records["values"])


def make_echo() -> ClientApp:
    """Return an app that answers with what it was sent, its site and its process."""
    app = ClientApp()

    def echo(message: Message, context: Context) -> Message:
        content = message.content
        content["values"] = ConfigRecord(
            {
                **content.config_records["values"],
                "site": str(context.node_config["site"]),
                "process": os.getpid(),
            }
        )
        return Message(content, reply_to=message)

    app.train()(echo)
    return app


def make_moody() -> ClientApp:
    """Return an app that dies, raises, sleeps or leaves half a reply, as its message says; else it echoes."""
    app, echo = ClientApp(), make_echo()

    def act(message: Message, context: Context) -> Message:
        values = message.content.config_records["values"]
        if "log" in values:
            with Path(str(values["log"])).open("a") as file:
                file.write(".")
        if Path(str(values.get("once", "/nowhere"))).exists():
            Path(str(values["once"])).unlink()
            _do(str(values.get("mood", "")))
        return echo(message, context)

    app.train()(act)
    return app


def _do(mood: str) -> None:
    """Act on a mood."""
    if mood == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if mood == "half":
        pipe = next(found for found in gc.get_objects() if isinstance(found, Connection))
        os.write(pipe.fileno(), struct.pack("!i", 1000) + b"only the beginning")
        os._exit(1)
    if mood == "raise":
        raise RuntimeError("patient 0815 is broken")
    if mood == "sleep":
        time.sleep(600)


def end_process(*_arguments: object) -> None:
    """End the process that runs this, as a kernel short of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)
