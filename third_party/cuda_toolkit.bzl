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

# Half a gigabyte: loaded when it is first wanted (engine/kernels/cuda/cublaslt_library.h), from the toolkit where the
# loader finds no other. A binary neither carries nor needs it.
cc_library(
    name = "cublaslt",
    linkopts = ["-Wl,-rpath,{home}/lib64", "-ldl"],
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
    has_cublaslt = bool(home) and ctx.path(home + "/include/cublasLt.h").exists
    ctx.file(
        "defs.bzl",
        "CUDA_HOME = %r\nCUDA_VERSION = %r\nHAS_CUBLASLT = %r\n" % (home, version, has_cublaslt),
    )
    if home:
        ctx.symlink(home + "/include", "include")
    ctx.file("BUILD", _BUILD.format(home = home) if home else "")

cuda_toolkit = repository_rule(
    implementation = _cuda_toolkit_impl,
    environ = ["CUDA_HOME"],
    local = True,
)
