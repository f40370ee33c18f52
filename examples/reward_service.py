#!/usr/bin/env python3
"""A reward service for Lockstep: start from here and change `score`.

    apt-get install python3-grpcio python3-protobuf protobuf-compiler protobuf-compiler-grpc
    /usr/bin/python3 examples/reward_service.py --port=7100
    lockstep run run.yaml data.reward=service data.reward_address=127.0.0.1:7100

The stubs are made from proto/reward.proto when it starts: by protoc with grpc_python_plugin, or by grpc_tools.
"""
import argparse
import concurrent.futures
import pathlib
import shutil
import subprocess
import sys
import tempfile

import grpc

MAX_MESSAGE_BYTES = 64 << 20  # what a learner may send


def score(sample):
    """The reward of one RewardSample: any finite number. An exception drops the sample, with its text as the reason."""
    words = sample.response.split()
    return 1.0 if words and words[-1].strip(".") == sample.answer else 0.0


def make_stubs(proto):
    """Generates and imports reward_pb2 and reward_pb2_grpc."""
    folder = tempfile.mkdtemp(prefix="lockstep-reward-")
    outputs = [f"-I{proto.parent}", f"--python_out={folder}", f"--grpc_python_out={folder}", str(proto)]
    plugin = shutil.which("grpc_python_plugin")
    if plugin and shutil.which("protoc"):
        subprocess.run(["protoc", f"--plugin=protoc-gen-grpc_python={plugin}", *outputs], check=True)
    else:
        from grpc_tools import protoc

        if protoc.main(["protoc", *outputs]) != 0:
            sys.exit("reward_service: protoc failed")
    sys.path.insert(0, folder)
    import reward_pb2
    import reward_pb2_grpc

    shutil.rmtree(folder)
    return reward_pb2, reward_pb2_grpc


def main():
    parser = argparse.ArgumentParser(description="an example reward service")
    parser.add_argument("--port", type=int, default=7100, help="0 takes a free one")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--address_file", help="file that gets host:port once the service answers")
    default = pathlib.Path(__file__).resolve().parent.parent / "proto" / "reward.proto"
    parser.add_argument("--proto", type=pathlib.Path, default=default)
    options = parser.parse_args()
    pb2, pb2_grpc = make_stubs(options.proto)

    class RewardService(pb2_grpc.RewardServiceServicer):
        def GetRewardInfo(self, request, context):
            return pb2.RewardInfo(name="examples/reward_service.py", max_batch_size=32)

        def ScoreSamples(self, request, context):
            response = pb2.ScoreSamplesResponse()
            for sample in request.samples:
                reward = response.rewards.add(sample_id=sample.sample_id)
                try:
                    reward.reward = score(sample)
                except Exception as error:  # of this sample alone
                    reward.error = f"{type(error).__name__}: {error}"
            return response

    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(max_workers=4),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # The learner pings every 10 s; gRPC's default would close the connection for that.
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    pb2_grpc.add_RewardServiceServicer_to_server(RewardService(), server)
    port = server.add_insecure_port(f"{options.bind}:{options.port}")
    if port == 0:
        sys.exit(f"reward_service: cannot listen on {options.bind}:{options.port}; choose another --port")
    server.start()
    print(f"rewards at {options.bind}:{port}", flush=True)
    if options.address_file:
        path = pathlib.Path(options.address_file)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(f"{options.bind}:{port}\n")
        temporary.rename(path)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
