"""Reads TensorBoard's event files, without TensorBoard."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events_of(workdir):
    """Events of all files, in the order of their names, as TensorBoard has it: length, checksum, payload, checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack("<Q", content[position : position + 8].ljust(8, b"\0"))
            if position + length + 16 > len(content):
                break  # A kill cut it short: TensorBoard waits for the rest.
            events.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += length + 16
    return events


def shown_scalars(workdir):
    """{tag: [(step, value)]} as TensorBoard shows them: a session hides what older ones tell from its first step on."""
    shown = {}
    for event in events_of(workdir):
        if event.HasField("session_log"):
            shown = {tag: [point for point in points if point[0] < event.step] for tag, points in shown.items()}
        for value in event.summary.value:
            if value.HasField("simple_value"):
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown
