#!/usr/bin/env python3
"""Prints the frames of proto/event_file_test.cc, as the tensorboard package writes them (2.21 was used)."""
import io

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter


class Kept(io.BytesIO):
    def close(self):
        pass


def frame(event):
    out = Kept()
    RecordWriter(out).write(event.SerializeToString())
    return out.getvalue().hex()


print("version", frame(Event(file_version="brain.Event:2")))
scalar = Event(wall_time=1.5, step=7)
scalar.summary.value.add(tag="train/reward", simple_value=0.25)
print("scalar ", frame(scalar))
print("start  ", frame(Event(step=3, session_log=SessionLog(status=SessionLog.START))))
