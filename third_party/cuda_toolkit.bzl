"""Repository @cuda: where the CUDA toolkit is, and NCCL. See cuda.bzl."""

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

# Its header; the library is loaded when it is used (weight_sync/nccl_api.h).
_NCCL_BUILD = """
cc_library(
    name = "nccl",
    hdrs = glob(["nccl_include/*.h"]),
    includes = ["nccl_include"],
    deps = [":headers"],
)
"""

# NCCL_HOME, where that is set, else with the toolkit, else where distributions have it; "" is nowhere.
def _nccl_home(ctx, cuda_home):
    asked = ctx.os.environ.get("NCCL_HOME", "")
    for home in [asked] if asked else [cuda_home, "/usr"]:
        if home.startswith("/") and ctx.path(home + "/include/nccl.h").exists:
            return home
    return ""

def _cuda_toolkit_impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME", "") or "/usr/local/cuda"
    version = ""
    if home.startswith("/") and ctx.path(home + "/bin/nvcc").exists:
        result = ctx.execute([home + "/bin/nvcc", "--version"])
        if result.return_code == 0:
            version = result.stdout.strip().split("\n")[-1]
    if not version:
        home = ""
    nccl_home = _nccl_home(ctx, home) if home else ""
    has_cublaslt = bool(home) and ctx.path(home + "/include/cublasLt.h").exists
    ctx.file(
        "defs.bzl",
        "CUDA_HOME = %r\nCUDA_VERSION = %r\nNCCL_HOME = %r\nHAS_CUBLASLT = %r\n" %
        (home, version, nccl_home, has_cublaslt),
    )
    build = ""
    if home:
        ctx.symlink(home + "/include", "include")
        build = _BUILD.format(home = home)
    if nccl_home:
        ctx.symlink(nccl_home + "/include/nccl.h", "nccl_include/nccl.h")
        ctx.file("nccl_include/nccl_home.h", "#define LOCKSTEP_NCCL_HOME \"%s\"\n" % nccl_home)
        build += _NCCL_BUILD
    ctx.file("BUILD", build)

cuda_toolkit = repository_rule(
    implementation = _cuda_toolkit_impl,
    environ = [
        "CUDA_HOME",
        "NCCL_HOME",
    ],
    local = True,
)
