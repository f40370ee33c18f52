"""Repository @cuda: where the CUDA toolkit is. See cuda.bzl."""

_BUILD = """package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/**"]),
    includes = ["include"],
)

# The runtime is linked in: a binary needs the driver alone.
cc_library(
    name = "cudart",
    linkopts = ["-L{home}/lib64", "-lcudart_static", "-ldl", "-lrt", "-lpthread"],
    deps = [":headers"],
)
"""

def _cuda_toolkit_impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME", "") or "/usr/local/cuda"
    version = ""
    if home.startswith("/") and ctx.path(home + "/bin/nvcc").exists:
        result = ctx.execute([home + "/bin/nvcc", "--version"])
        if result.return_code == 0:
            version = result.stdout.strip().split("\n")[-1]
    if not version:
        home = ""
    ctx.file("defs.bzl", "CUDA_HOME = %r\nCUDA_VERSION = %r\n" % (home, version))
    if home:
        ctx.symlink(home + "/include", "include")
    ctx.file("BUILD", _BUILD.format(home = home) if home else "")

cuda_toolkit = repository_rule(
    implementation = _cuda_toolkit_impl,
    environ = ["CUDA_HOME"],
    local = True,
)
