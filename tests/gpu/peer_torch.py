#!/usr/bin/env python3
"""PyTorch beside tests/gpu/bench, on the same device: the same shapes with random weights, the same tables.

decode    a hand-written loop: fused qkv and gate_up weights, a preallocated KV cache, scaled_dot_product_attention by
          the fastest of its kernels, a Gumbel draw and its log-prob on the device, all of a step in one CUDA graph. Its
          attention always reads exactly `context` keys, without a mask, which is the best that torch's kernels can be
          given.
training  FP32 parameters under autocast (FP16 with a GradScaler), scaled_dot_product_attention, cross-entropy in chunks
          of tokens that are computed again in the backward pass (the logits of all tokens would not fit), clipping,
          fused AdamW. torch.compile of layers, draw and loss unless --eager, or where it does not work.

    tests/gpu/peer_torch.py [--dtype fp16|bf16] [--shapes A,B] [--batches 1,8,64,256] [--context N]
                            [--train-tokens N] [--train-length N] [--eager] [--out FILE]
    tests/gpu/peer_torch.py --check [--eager]      on the CPU: the loop against the whole pass, chunks against one loss

Exit 0: every row was measured. 1: some could not be. 77: torch, or a device for it, is not there; one line.
"""

import argparse
import contextlib
import math
import statistics
import sys
import time

try:
    import torch
    import torch._dynamo
    import torch.nn.functional as F
    import torch.utils.checkpoint
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    print(f"no PyTorch: {error}")
    sys.exit(77)

SHAPES = {  # layers, hidden, heads, kv heads, head dim, mlp width, vocabulary
    "qwen2.5-0.5b": (24, 896, 14, 2, 64, 4864, 151936),
    "qwen2.5-1.5b": (28, 1536, 12, 2, 128, 8960, 151936),
    "tiny": (2, 64, 4, 2, 16, 96, 300),
}
THETA, EPSILON, MAX_POSITIONS = 1e6, 1e-6, 4096
WARM_UP, REPEATS, DECODE_STEPS = 3, 11, 16


class Shape:
    def __init__(self, name):
        (self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.width, self.vocabulary) = SHAPES[name]
        self.qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        per_layer = self.hidden * (self.qkv + self.heads * self.head_dim + 3 * self.width)
        self.matrix_parameters = self.layers * per_layer + self.vocabulary * self.hidden
        self.parameters = self.matrix_parameters + self.layers * (2 * self.hidden + self.qkv) + self.hidden

    def decode_bytes(self, batch, context):
        kv = 2 * self.layers * self.kv_heads * self.head_dim * 2
        return 2 * self.parameters + batch * (context + 1) * kv

    def decode_flop(self, batch, context):
        return batch * (2 * self.matrix_parameters + 4 * self.layers * self.heads * self.head_dim * context)

    def training_flop(self, sequences, length):
        attention = 6 * self.layers * self.heads * self.head_dim * length
        return sequences * length * (6 * self.matrix_parameters + attention)


class Weights(torch.nn.Module):
    """Random weights of the sizes that tests/gpu/bench gives them."""

    def __init__(self, shape, device, dtype, seed=1):
        super().__init__()
        generator = torch.Generator(device=device).manual_seed(seed)

        def make(*size, center=0.0, spread=0.035):
            values = torch.rand(*size, generator=generator, device=device)
            return torch.nn.Parameter(((values * 2 - 1) * spread + center).to(dtype))

        self.embed = make(shape.vocabulary, shape.hidden)
        self.final_norm = make(shape.hidden, center=1.0, spread=0.1)
        self.layers = torch.nn.ModuleList()
        for _ in range(shape.layers):
            layer = torch.nn.Module()
            layer.input_norm = make(shape.hidden, center=1.0, spread=0.1)
            layer.post_norm = make(shape.hidden, center=1.0, spread=0.1)
            layer.qkv = make(shape.qkv, shape.hidden)
            layer.qkv_bias = make(shape.qkv)
            layer.o = make(shape.hidden, shape.heads * shape.head_dim)
            layer.gate_up = make(2 * shape.width, shape.hidden)
            layer.down = make(shape.hidden, shape.width)
            self.layers.append(layer)


def rms_norm(x, weight):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(x.dtype) * weight.to(x.dtype)


def rotary_table(shape, device):
    inverse = THETA ** (-torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float64) / shape.head_dim)
    angles = torch.arange(MAX_POSITIONS, device=device, dtype=torch.float64)[:, None] * inverse
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """x [..., E] with cos, sin that broadcast to [..., E / 2]."""
    low, high = x.float().chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def layer_forward(shape, layer, x, cos, sin, attend):
    """One layer of x [B, T, D]; attend(q [B, H, T, E], k and v [B, G, T, E]) gives [B, H, T, E]."""
    rows, length, _ = x.shape
    qkv = F.linear(rms_norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
    heads = qkv.view(rows, length, -1, shape.head_dim).transpose(1, 2)
    q, k, v = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), 1)
    out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
    x = x + F.linear(out.transpose(1, 2).reshape(rows, length, -1), layer.o)
    return x + F.linear(swiglu(F.linear(rms_norm(x, layer.post_norm), layer.gate_up)), layer.down)


def training_layer(shape, layer, x, cos, sin):
    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return layer_forward(shape, layer, x, cos, sin, attend)


def decode_layer(shape, layer, x, cos, sin, keys, values):
    """Of one new token a row; keys, values [B, G, context, E] get its key and value as their last."""

    def attend(q, k, v):
        keys[:, :, -1:] = k
        values[:, :, -1:] = v
        return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)

    return layer_forward(shape, layer, x, cos, sin, attend)


def logits_of(x, norm, output):
    return F.linear(rms_norm(x, norm), output)[:, 0].float()


def draw(x, norm, output, uniform):
    """A token from each row of the last hidden states x [B, 1, D], by Gumbel noise of uniform [B, V]; its log-prob."""
    log_probs = torch.log_softmax(logits_of(x, norm, output), -1)
    noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    drawn = (log_probs + noise).argmax(-1)
    return drawn, log_probs.gather(1, drawn[:, None])[:, 0]


def loss_part(rows, output, wanted):
    return F.cross_entropy(F.linear(rows, output).float(), wanted, reduction="sum")


def compiled(parts, fuse):
    """`parts` by torch.compile, for one set of shapes: what an earlier call compiled is forgotten, so that none meets
    the limit of recompilations."""
    torch._dynamo.reset()
    return [torch.compile(part, dynamic=False) if fuse else part for part in parts]


class Clock:
    """Median seconds of calls, by CUDA events where there is a device."""

    def __init__(self, device):
        self.cuda = device.type == "cuda"

    def median(self, body, warm_up=WARM_UP, repeats=REPEATS):
        times = []
        for i in range(warm_up + repeats):
            if self.cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                body()
                end.record()
                end.synchronize()
                seconds = begin.elapsed_time(end) * 1e-3
            else:
                start = time.perf_counter()
                body()
                seconds = time.perf_counter() - start
            if i >= warm_up:
                times.append(seconds)
        return statistics.median(times)


class Decoder:
    """Decode steps of `batch` sequences that have `context` - 1 keys already; each step writes key `context` - 1."""

    def __init__(self, shape, weights, batch, context, device, dtype, fuse):
        self.shape, self.weights = shape, weights
        size = (shape.layers, batch, shape.kv_heads, context, shape.head_dim)
        self.keys, self.values = (torch.randn(size, device=device, dtype=dtype) for _ in range(2))
        self.tokens = torch.arange(batch, device=device) * 7919 % shape.vocabulary
        self.log_probs = torch.zeros(batch, device=device)
        cos, sin = rotary_table(shape, device)
        self.cos, self.sin = cos[context - 1], sin[context - 1]
        self.layer, self.draw = compiled((decode_layer, draw), fuse)
        self.attention = contextlib.nullcontext
        self.graph = None

    def choose_attention(self, clock):
        """The fastest of torch's attention kernels for these shapes; returns its name."""
        keys, values = self.keys[0], self.values[0]
        q = torch.randn(keys.shape[0], self.shape.heads, 1, self.shape.head_dim, device=keys.device, dtype=keys.dtype)
        best, name = math.inf, "default"
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            try:
                with torch.no_grad(), sdpa_kernel(backend):
                    seconds = clock.median(lambda: F.scaled_dot_product_attention(q, keys, values, enable_gqa=True))
            except RuntimeError:  # it does not take them
                continue
            if seconds < best:
                best, name = seconds, backend.name
                self.attention = lambda backend=backend: sdpa_kernel(backend)
        return name

    @torch.no_grad()
    def hidden(self):
        x = F.embedding(self.tokens, self.weights.embed)[:, None]
        with self.attention():
            for layer, keys, values in zip(self.weights.layers, self.keys, self.values):
                x = self.layer(self.shape, layer, x, self.cos, self.sin, keys, values)
        return x

    @torch.no_grad()
    def step(self):
        x = self.hidden()
        uniform = torch.rand(x.shape[0], self.shape.vocabulary, device=x.device)
        drawn, log_probs = self.draw(x, self.weights.final_norm, self.weights.embed, uniform)
        self.log_probs.copy_(log_probs)
        self.tokens.copy_(drawn)

    def capture(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def run(self, steps):
        for _ in range(steps):
            if self.graph is None:
                self.step()
            else:
                self.graph.replay()


def chunked_loss(part, hidden, output, targets, chunk):
    """Mean cross-entropy of hidden [T, D]; the logits of a chunk of rows exist at a time, forward and backward."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for begin in range(0, hidden.shape[0], chunk):
        rows, wanted = hidden[begin : begin + chunk], targets[begin : begin + chunk]
        total = total + torch.utils.checkpoint.checkpoint(part, rows, output, wanted, use_reentrant=False)
    return total / targets.numel()


class Trainer:
    """Steps on [sequences, length] tokens; every token that has a next one is trained on."""

    def __init__(self, shape, weights, sequences, length, dtype, device, fuse):
        self.shape, self.weights, self.dtype, self.device = shape, weights, dtype, device
        generator = torch.Generator().manual_seed(7)
        self.tokens = torch.randint(shape.vocabulary, (sequences, length), generator=generator).to(device)
        cos, sin = rotary_table(shape, device)
        self.cos, self.sin = cos[:length], sin[:length]
        self.layer, self.part = compiled((training_layer, loss_part), fuse)
        self.optimizer = torch.optim.AdamW(
            weights.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def loss(self):
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            x = F.embedding(self.tokens, self.weights.embed).to(self.dtype)
            for layer in self.weights.layers:
                x = self.layer(self.shape, layer, x, self.cos, self.sin)
            hidden = rms_norm(x, self.weights.final_norm)[:, :-1].reshape(-1, self.shape.hidden)
            return chunked_loss(self.part, hidden, self.weights.embed, self.tokens[:, 1:].reshape(-1), 2048)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(self.loss()).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.weights.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def settle(self, most=40):
        """Steps until the loss scale holds for three: a step that is skipped is a short one."""
        held, scale = 0, self.scaler.get_scale()
        for _ in range(most):
            self.step()
            held = held + 1 if self.scaler.get_scale() >= scale else 0
            scale = self.scaler.get_scale()
            if held == 3:
                return
        raise RuntimeError(f"the gradient is not finite at a loss scale of {scale}")


class Tables:
    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8") if path else None
        self.missing = 0

    def line(self, text):
        for to in (sys.stdout, self.file):
            if to is not None:
                print(text, file=to, flush=True)

    def begin(self, heading, columns):
        self.line(f"\n### {heading}\n")
        self.row(columns)
        self.row(["---"] * len(columns))
        self.columns = len(columns)

    def row(self, cells):
        self.line(f"| {' | '.join(cells)} |")

    def no_row(self, what, error):
        self.missing += 1
        self.row([f"{what}: {str(error).splitlines()[0]}"] + [""] * (self.columns - 1))


def measure_limits(clock, device, dtype, tables, copied=1 << 30, size=8192):
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    for _ in range(500 if clock.cuda else 0):  # a device that did nothing has low clocks for some tenths of a second
        target.copy_(source)
    copy = 2 * copied / clock.median(lambda: target.copy_(source))
    read = copied / clock.median(source.sum)
    del source, target
    a, b = (torch.rand(size, size, device=device).to(dtype) * 2 - 1 for _ in range(2))
    matrix = 2 * size**3 / clock.median(lambda: F.linear(a, b))
    tables.begin("PyTorch: measured limits of this device", ["limit", "figure"])
    tables.row(["copy on the device (bytes read and written)", f"{copy * 1e-9:.0f} GB/s"])
    tables.row(["read by torch's sum", f"{read * 1e-9:.0f} GB/s"])
    tables.row([f"matrix product by torch, {size}^3", f"{matrix * 1e-12:.1f} TFLOP/s"])
    return max(copy, read), matrix


def bench_decode(name, options, clock, device, dtype, limits, tables):
    shape = Shape(name)
    bandwidth, matrix = limits
    tables.begin(
        f"PyTorch: decode of {name}, {options.dtype}, context {options.context}",
        ["numerics", "batch", "step", "tokens/s", "limit by bytes", "of it", "limit by FLOP", "time against native"],
    )
    weights = Weights(shape, device, dtype)
    for batch in options.batches:
        try:
            decoder = Decoder(shape, weights, batch, options.context, device, dtype, not options.eager)
            attention = decoder.choose_attention(clock)
            if device.type == "cuda":
                decoder.capture()
            seconds = clock.median(lambda: decoder.run(DECODE_STEPS)) / DECODE_STEPS
            by_bytes = shape.decode_bytes(batch, options.context) / bandwidth
            by_flop = shape.decode_flop(batch, options.context) / matrix
            tables.row(
                [f"torch, {attention.lower()}", str(batch), f"{seconds * 1e3:.3f} ms", f"{batch / seconds:.0f}",
                 f"{by_bytes * 1e3:.3f} ms", f"{by_bytes / seconds * 100:.0f}%", f"{by_flop * 1e3:.3f} ms", ""]
            )  # fmt: skip
            del decoder
        except RuntimeError as error:  # out of memory among them
            tables.no_row(f"batch {batch}", error)


def bench_train(name, options, clock, device, dtype, limits, tables):
    shape = Shape(name)
    tables.begin(
        f"PyTorch: training step of {name}, {options.dtype}, {options.train_tokens} packed tokens, sequences of "
        f"{options.train_length}",
        ["numerics", "step", "tokens/s", "TFLOP/s", "of the matrix rate", "forward", "backward", "optimizer",
         "optimizer's share of the bandwidth", "recompute", "time against native"],
    )  # fmt: skip
    sequences = options.train_tokens // options.train_length
    try:
        weights = Weights(shape, device, torch.float32)
        trainer = Trainer(shape, weights, sequences, options.train_length, dtype, device, not options.eager)
        trainer.settle()
        scale = trainer.scaler.get_scale()
        seconds = clock.median(trainer.step)
        if trainer.scaler.get_scale() < scale:
            raise RuntimeError("a step was skipped while it was measured: its gradient was not finite")
        with torch.no_grad():
            forward = clock.median(trainer.loss)
        flop = shape.training_flop(sequences, options.train_length)
        tables.row(
            ["torch", f"{seconds * 1e3:.2f} ms", f"{sequences * options.train_length / seconds:.0f}",
             f"{flop / seconds * 1e-12:.1f}", f"{flop / seconds / limits[1] * 100:.0f}%", f"{forward * 1e3:.2f} ms",
             "", "", "", "no", ""]
        )  # fmt: skip
    except RuntimeError as error:
        tables.no_row("training", error)


def check(fuse):
    """The code above on the CPU, in FP32 and a tiny shape, against plainer code. Prints what it compared."""
    torch.manual_seed(3)
    device, shape = torch.device("cpu"), Shape("tiny")
    weights = Weights(shape, device, torch.float32)
    assert sum(p.numel() for p in weights.parameters()) == shape.parameters

    # A sequence token by token: each step's logits are those of the whole forward pass at its last position.
    length, worst = 9, 0.0
    tokens = torch.randint(shape.vocabulary, (2, length))
    whole = Trainer(shape, weights, 2, length, torch.float32, device, False)
    whole.tokens = tokens
    with torch.no_grad():
        x = F.embedding(tokens, weights.embed)
        for layer in weights.layers:
            x = training_layer(shape, layer, x, whole.cos, whole.sin)
        expected = F.linear(rms_norm(x, weights.final_norm), weights.embed)
    keys = values = None
    for context in range(1, length + 1):
        decoder = Decoder(shape, weights, 2, context, device, torch.float32, fuse)
        if keys is not None:
            decoder.keys[:, :, :, : context - 1], decoder.values[:, :, :, : context - 1] = keys, values
        decoder.tokens = tokens[:, context - 1]
        with torch.no_grad():
            logits = logits_of(decoder.hidden(), weights.final_norm, weights.embed)
        worst = max(worst, (logits - expected[:, context - 1]).abs().max().item())
        keys, values = decoder.keys, decoder.values
    assert worst < 1e-4, worst
    print(f"decode step by step against the whole forward pass: largest difference of a logit {worst:.1e}")

    # A step draws from the distribution whose log-prob it reports.
    decoder.step()
    assert torch.isfinite(decoder.log_probs).all() and (decoder.log_probs < 0).all()

    # Loss in chunks: value and gradients of the plain one.
    hidden = torch.randn(50, shape.hidden, requires_grad=True)
    targets = torch.randint(shape.vocabulary, (50,))
    grads = []
    for loss in (chunked_loss(loss_part, hidden, weights.embed, targets, 16),
                 F.cross_entropy(F.linear(hidden, weights.embed), targets)):  # fmt: skip
        grads.append((loss.detach(), *torch.autograd.grad(loss, (hidden, weights.embed))))
    for ours, plain in zip(*grads):
        assert torch.allclose(ours, plain, atol=1e-6), (ours - plain).abs().max()
    print("loss in chunks against one loss: value and gradients agree to 1e-6")

    # Training steps learn their batch by heart.
    trainer = Trainer(shape, weights, 2, 12, torch.float32, device, fuse)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-2
    first = trainer.loss().item()
    for _ in range(30):
        trainer.step()
    last = trainer.loss().item()
    assert abs(first - math.log(shape.vocabulary)) < 1 and last < first / 2, (first, last)
    print(f"30 training steps on one batch: loss {first:.3f} to {last:.3f}, first about log V = {math.log(300):.3f}")

    # The rows, timed on the CPU: the figures mean nothing.
    options = argparse.Namespace(dtype="fp32", context=20, batches=[1, 3], train_tokens=48, train_length=24, eager=True)
    tables, clock = Tables(""), Clock(device)
    limits = measure_limits(clock, device, torch.float32, tables, copied=1 << 16, size=64)
    bench_decode("tiny", options, clock, device, torch.float32, limits, tables)
    bench_train("tiny", options, clock, device, torch.float32, limits, tables)
    assert tables.missing == 0
    print("\nchecked")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=["qwen2.5-1.5b", "qwen2.5-0.5b"])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 64, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--train-tokens", type=int, default=8192)
    parser.add_argument("--train-length", type=int, default=1024)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out", default="")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for name in options.shapes:
        if name not in SHAPES:
            parser.error(f"shape '{name}' is not known; these are: {', '.join(SHAPES)}")
    if max(options.context, options.train_length) > MAX_POSITIONS:
        parser.error(f"more than {MAX_POSITIONS} positions")
    if options.check:
        check(not options.eager)
        return 0
    if not torch.cuda.is_available():
        print(f"no CUDA device for PyTorch {torch.__version__}")
        return 77
    device, tables = torch.device("cuda"), Tables(options.out)
    clock = Clock(device)
    dtype = torch.float16 if options.dtype == "fp16" else torch.bfloat16
    if not options.eager:
        try:
            compiled((swiglu,), True)[0](torch.ones(4, 4, device=device))
        except Exception as error:  # whatever it lacks: a C compiler, Triton
            tables.line(f"\ntorch.compile does not work here: {str(error).splitlines()[0]}")
            options.eager = True
    how = "eager" if options.eager else "torch.compile of layers, draw and loss"
    tables.line(f"\nPyTorch {torch.__version__}, {how}.")
    limits = measure_limits(clock, device, dtype, tables)
    for name in options.shapes:
        bench_decode(name, options, clock, device, dtype, limits, tables)
        torch.cuda.empty_cache()
        bench_train(name, options, clock, device, dtype, limits, tables)
        torch.cuda.empty_cache()
    return 1 if tables.missing else 0


if __name__ == "__main__":
    sys.exit(main())
