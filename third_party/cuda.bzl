"""The CUDA toolkit as a repository, and libraries made of .cu files.

The toolkit is CUDA_HOME where that is set, else /usr/local/cuda. Where there is no nvcc in it, @cuda is empty, the
macros below make no targets, and everything else builds as it does with a toolkit. NCCL is that of NCCL_HOME where that
is set, else the toolkit's, else the distribution's; without it only what needs it is absent.

The compiler's flags are in nvcc.flags, which tests/gpu/run_all reads too: objects for sm_80 and sm_90a, and PTX for what
comes after them; -fmad=false, since multiply-adds are written out, as on the CPU (-ffp-contract=off). Division and sqrt
are the IEEE ones by default.
"""

load("@cuda//:defs.bzl", "CUDA_HOME", "CUDA_VERSION", "HAS_CUBLASLT", "NCCL_HOME")

def _cuda_object_impl(ctx):
    source = ctx.file.src
    stem = source.basename[:-len(".cu")]
    object_file = ctx.actions.declare_file(stem + ".o")
    report = ctx.actions.declare_file(stem + ".ptxas")
    ptx = ctx.actions.declare_file(stem + ".ptx")
    headers = [dep[CcInfo].compilation_context.headers for dep in ctx.attr.deps]
    ctx.actions.run_shell(
        inputs = depset([source, ctx.file._flags], transitive = headers),
        outputs = [object_file, report, ptx],
        # ptxas prints its compile times too; the report is to depend on the sources alone.
        command = """
keep=$(mktemp -d) || exit 1
trap 'rm -rf "$keep"' EXIT
log=$({nvcc} -optf {flags} --keep --keep-dir "$keep" -I. -c {source} -o {object} 2>&1) || {{ echo "$log" >&2; exit 1; }}
echo "$log" | grep -v 'Compile time' > {report}
cat $(grep -l '^.target sm_80' "$keep"/*.ptx) > {ptx}
""".format(
            nvcc = CUDA_HOME + "/bin/nvcc",
            flags = ctx.file._flags.path,
            source = source.path,
            object = object_file.path,
            report = report.path,
            ptx = ptx.path,
        ),
        env = {"LOCKSTEP_NVCC_VERSION": CUDA_VERSION},  # another compiler is another action
        mnemonic = "Nvcc",
        progress_message = "Compiling %s with nvcc" % source.short_path,
        use_default_shell_env = True,
    )
    return [
        DefaultInfo(files = depset([object_file])),
        OutputGroupInfo(ptxas = depset([report]), ptx = depset([ptx])),
    ]

_cuda_object = rule(
    implementation = _cuda_object_impl,
    attrs = {
        "src": attr.label(allow_single_file = [".cu"], mandatory = True),
        "deps": attr.label_list(providers = [CcInfo]),
        "_flags": attr.label(allow_single_file = True, default = "//third_party:nvcc.flags"),
    },
)

def cuda_library(name, srcs, hdrs, deps):
    """A cc_library of device code. No targets without a toolkit.

    Args:
      name: of the cc_library; NAME_ptxas are the reports of `ptxas -v`, NAME_ptx the intermediate code, one a source.
      srcs: .cu files.
      hdrs: headers of the launchers (.h) and of the device code (.cuh).
      deps: cc_library targets whose headers the sources include.
    """
    if not CUDA_HOME:
        return
    native.cc_library(
        name = name + "_headers",
        hdrs = hdrs,
        deps = deps + ["@cuda//:headers"],
    )
    objects = []
    for src in srcs:
        target = "%s_%s" % (name, src[:-len(".cu")])
        _cuda_object(name = target, src = src, deps = [":%s_headers" % name])
        objects.append(target)
    native.cc_library(
        name = name,
        srcs = objects,
        deps = [
            ":%s_headers" % name,
            "@cuda//:cudart",
        ],
    )
    for group in ["ptxas", "ptx"]:
        native.filegroup(
            name = "%s_%s" % (name, group),
            srcs = objects,
            output_group = group,
        )

def if_cuda(rule, name, **kwargs):
    """The target rule(name, **kwargs) where there is a toolkit, none where there is not."""
    if CUDA_HOME:
        rule(name = name, **kwargs)

def cuda_or_none(cuda, cuda_deps, none):
    """(srcs, deps): the source for builds with a toolkit and what it needs, or the one for builds without."""
    return ([cuda], cuda_deps) if CUDA_HOME else ([none], [])

def nccl_or_none(nccl, nccl_deps, none):
    """The same for NCCL."""
    return ([nccl], nccl_deps) if NCCL_HOME else ([none], [])

def cublaslt_or_none(cublaslt, cublaslt_deps, none):
    """The same for cuBLASLt."""
    return ([cublaslt], cublaslt_deps) if HAS_CUBLASLT else ([none], [])

def if_nccl(rule, name, **kwargs):
    """The target rule(name, **kwargs) where there are a toolkit and NCCL, none where there are not."""
    if NCCL_HOME:
        rule(name = name, **kwargs)

def if_cublaslt(rule, name, **kwargs):
    """The target rule(name, **kwargs) where the toolkit has cuBLASLt's header, none where it has not."""
    if HAS_CUBLASLT:
        rule(name = name, **kwargs)

# Code over the emulation that tells of its accesses to memory (engine/kernels/cuda/emulation/races.h). Whoever links it
# depends on race_hooks there.
RACE_COPTS = select({
    "//engine/kernels/cuda/emulation:sanitized": [],
    "//conditions:default": ["-fsanitize=thread"],
})

def cuda_emulated_library(name, srcs, hdrs, deps, copts = []):
    """The same .cu files compiled for the CPU, over engine/kernels/cuda/emulation. Needs no toolkit; for tests."""
    wrappers = []
    for src in srcs:
        wrapper = "%s_%s.cc" % (name, src[:-len(".cu")])
        native.genrule(
            name = wrapper[:-len(".cc")] + "_source",
            outs = [wrapper],
            cmd = "echo '#include \"%s/%s\"' > $@" % (native.package_name(), src),
        )
        wrappers.append(wrapper)
    native.cc_library(
        name = name,
        testonly = True,
        srcs = wrappers,
        hdrs = hdrs,
        copts = [
            "-Wno-unknown-pragmas",  # unroll
        ] + copts,
        textual_hdrs = srcs,
        deps = deps + ["//engine/kernels/cuda/emulation"],
    )

def cuda_cc_library(name, srcs = [], hdrs = [], deps = [], cuda_deps = [], testonly = False):
    """Host code over the runtime, twice: NAME for the GPU (none without a toolkit), emulated_NAME for tests.

    Args:
      name: of the cc_library.
      srcs: .cc files that include cuda_runtime.h.
      hdrs: their headers.
      deps: targets that know nothing of CUDA.
      cuda_deps: targets that are there twice as well, with or without their package.
      testonly: of NAME; the other always is.
    """
    emulated = []
    for dep in cuda_deps:
        package, _, target = dep.rpartition(":")
        emulated.append("%s:emulated_%s" % (package, target))
    if CUDA_HOME:
        native.cc_library(
            name = name,
            testonly = testonly,
            srcs = srcs,
            hdrs = hdrs,
            deps = deps + cuda_deps + ["@cuda//:cudart"],
        )
    native.cc_library(
        name = "emulated_" + name,
        testonly = True,
        srcs = srcs,
        hdrs = hdrs,
        deps = deps + emulated + ["//engine/kernels/cuda/emulation"],
    )
