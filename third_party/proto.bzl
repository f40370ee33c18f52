"""One macro from a .proto to a C++ library with messages and, where it declares services, gRPC stubs."""

def lockstep_proto_library(name, src, deps = [], **kwargs):
    """Runs protoc with the C++ and gRPC plugins.

    Args:
      name: the cc_library's name.
      src: one .proto file of this package, imported as "proto/FILE.proto".
      deps: the lockstep_proto_library targets whose .proto files it imports.
      **kwargs: passed to the cc_library.
    """
    stem = src[:-len(".proto")]
    outs = [stem + suffix for suffix in [".pb.h", ".pb.cc", ".grpc.pb.h", ".grpc.pb.cc"]]
    native.genrule(
        name = name + "_gen",
        srcs = native.glob(["*.proto"]),
        outs = outs,
        cmd = "protoc -I. --cpp_out=$(GENDIR) --grpc_out=$(GENDIR) " +
              "--plugin=protoc-gen-grpc=$$(which grpc_cpp_plugin) $(location :%s)" % src,
    )
    native.cc_library(
        name = name,
        srcs = [stem + ".pb.cc", stem + ".grpc.pb.cc"],
        hdrs = [stem + ".pb.h", stem + ".grpc.pb.h"],
        copts = ["-w"],  # generated code
        deps = deps + ["@system//:grpc"],
        **kwargs
    )
