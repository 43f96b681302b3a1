"""What our grid relies on of flwr 1.41 beyond its public interface; a new version that changes it fails here."""

import inspect
from importlib.metadata import version

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from deploy.simulation.grid import LocalGrid, identify


def test_version_is_the_one_that_was_read():
    assert version("flwr").startswith("1.41.")


def test_grid_has_no_new_abstract_method():
    assert Grid.__abstractmethods__ <= set(dir(LocalGrid))
    assert not inspect.isabstract(LocalGrid)


def test_a_message_needs_an_identity_and_its_id_can_be_set():
    identify(7)
    message = Message(RecordDict({"a": ConfigRecord({"x": 1})}), 2, "train", group_id="3")
    message.metadata.__dict__["_message_id"] = "m1"
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.message_id) == (
        7,
        1,
        "m1",
    )


def test_a_message_survives_serialisation_bit_for_bit():
    identify(7)
    array = np.array([0.1, np.nan, -0.0, 1e-45], np.float32)
    message = Message(RecordDict({"w": ArrayRecord([array])}), 2, "train")
    message.metadata.__dict__["_message_id"] = "m1"
    again = message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))
    (back,) = again.content["w"].to_numpy_ndarrays()
    assert back.tobytes() == array.tobytes()
    assert again.metadata.message_id == "m1"


def test_an_empty_run_can_be_made():
    assert Run.create_empty(5).run_id == 5
