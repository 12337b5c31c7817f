"""Reads TensorBoard's event files, without TensorBoard."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events_of(workdir):
    """Events of all files, in the order of their names, as TensorBoard has it: length, checksum, payload, checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack("<Q", content[position : position + 8])
            events.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += length + 16
    return events
