"""gpu.py for pretrained models: what a stage costs, what is launched, tokens a second of frames.

Models have random weights in the shape of real ones, which takes the same time; --model FILE adds
a real one.  Frames are of random tokens, so that no tokenizer is needed.
"""

import time
from collections.abc import Callable, Iterator

from gpu_costs import INSTRUCTIONS, MULTIPROCESSORS, Cost, row_cost

LANES = (64, 256, 1024, 4096)
PREFILL = ((64, 64), (16, 64))  # lanes, positions at once
REST = 0.16  # of tokens that are no candidates: SmolLM2 on text, bench/token_cores.py
KEY_TILES = ((32, 1), (64, 1), (64, 4), (128, 4))  # keys at once and warps of attention


def architectures() -> dict[str, object]:
    from lmzip.llama_model import LlamaArchitecture

    def shape(name, vocabulary, d_model, layers, heads, kv, d_ff):
        return name, LlamaArchitecture(
            vocabulary, d_model, layers, heads, kv, 64, d_ff, (1024,) * layers, (4,) * layers, 1e-5,
            wide=("down",),  # as imports have it
        )  # fmt: skip

    return dict(
        [
            shape("random, SmolLM2-135M's shape", 49152, 576, 30, 9, 3, 1536),
            shape("random, SmolLM2-360M's shape", 49152, 960, 32, 15, 5, 2560),
        ]
    )


# --- what a stage costs ---


def product_cost(a, product: str, rows: int, inputs: int, outputs: int, other: int) -> Cost:
    """other: bytes of a row beside the inputs: what goes in and out of the sums."""
    planes = 2 if product in a.wide else 1
    moved = rows * (planes * inputs + other) + inputs * outputs
    return Cost(moved, 2 * planes * rows * inputs * outputs)


def attention_cost(a, layer: int, lanes: int, count: int, kept: bool) -> Cost:
    """Full windows; keys once if scores are kept, else three times."""
    group = a.n_heads // a.n_kv_heads
    block = max(8, min(32, 1 << (count * group - 1).bit_length()))
    programs = lanes * a.n_kv_heads * -(-count * group // block)
    positions = min(count, -(-block // group))
    keys = a.windows[layer] + a.sinks[layer] + positions - 1
    passes = 1 if kept else 3
    cache = keys * ((passes + 1) * a.head_dim + 4 * (passes + 2))
    scores = 3 * 4 * keys * min(block, count * group) if kept else 0
    rows = lanes * count * a.n_heads * 6 * a.head_dim
    sums = 2 * block * keys * a.head_dim * (passes + 2)
    return Cost(
        programs * (cache + scores) + rows,
        programs * sums,
        programs * block * keys * INSTRUCTIONS[f"token attention, {'step' if kept else 'block'}"],
    )


def vocabulary_cost(a, stage: str, rows: float, passes: int, written: int) -> tuple[str, Cost]:
    """A program takes a row: with fewer rows than multiprocessors, some have nothing to do."""
    numbers = passes * a.vocabulary
    return stage, Cost(
        rows * (4 * numbers + written),
        instructions=max(rows, MULTIPROCESSORS) * numbers * INSTRUCTIONS[stage],
    )


def step_costs(a, lanes: int, count: int) -> list[tuple[str, Cost]]:
    """(stage, cost) of a block, with what coders ask: targets when encoding, which takes blocks, a
    search when decoding."""
    rows, d, f, v = lanes * count, a.d_model, a.d_ff, a.vocabulary
    heads = a.n_heads * a.head_dim
    kv = a.n_kv_heads * a.head_dim
    qkv = heads + 2 * kv
    kept = count * a.n_heads // a.n_kv_heads <= 16
    added = (16 if a.post_norms else 8) * d  # sums are stored for the norm after a part
    costs = [row_cost("token embed", rows, d, 6 * d, d)]
    for layer in range(a.n_layers):
        costs += [
            ("qkv product", product_cost(a, "qkv", rows, d, qkv, 4 * qkv)),
            row_cost("token split_heads", rows, 4 * qkv, qkv + heads, qkv),
            ("attention", attention_cost(a, layer, lanes, count, kept)),
            row_cost("quantize", rows, 4 * heads, 2 * heads, heads),
            ("out product", product_cost(a, "out", rows, heads, d, added)),
            row_cost("normalize", rows, 4 * d, 2 * d, d),
            ("gate product", product_cost(a, "gate_up", rows, d, 2 * f, 4 * f)),
            row_cost("quantize", rows, 4 * f, 2 * f, f),
            ("down product", product_cost(a, "down", rows, f, d, added)),
            row_cost("normalize", rows, 4 * d, 2 * d, d),
        ]
    costs.append(("head product", product_cost(a, "head", rows, d, v, 4 * v)))
    costs.append(vocabulary_cost(a, "survey", rows, 3, 4200))
    asked = ("search", 3) if count == 1 else ("targets", 2)
    costs.append(vocabulary_cost(a, asked[0], REST * rows, asked[1], 4200))
    return costs


# --- measurements ---


def models(bench) -> Iterator[tuple[str, object]]:
    from lmzip import llama_model
    from random_llama import random_llama, small_llama

    if bench.args.model is not None:
        model = llama_model.parse(bench.args.model.read_bytes())
        yield model.name, model
    if bench.on_cpu:
        yield "small tokens", random_llama(small_llama(n_layers=1, windows=(5,), sinks=(2,)), 1)
        return
    for name, architecture in architectures().items():
        yield name, random_llama(architecture, 1)


def engine_of(bench, model):
    """The Triton engine; raises SystemExit where it does not give the CPU's integers."""
    from lmzip import _core
    from lmzip.torch_token_codec import agrees_with_native
    from lmzip.triton_llama import TritonLlama

    engine = TritonLlama(model, bench.device)
    native = _core.LlamaModel(model.tensors, model.architecture.to_native())
    if not agrees_with_native(engine, native, 2 if bench.on_cpu else 24):
        raise SystemExit(f"{model.name}: the integers differ from the CPU's: nothing is measured")
    return engine, native


def run(bench) -> None:
    for name, model in models(bench):
        if not bench.in_time():
            return
        engine, native = engine_of(bench, model)
        bench.add(what="equality", model=name, note="logits and answers equal the native engine's")
        shapes = [(2, 1), (2, 8)] if bench.on_cpu else [(n, 1) for n in LANES] + [*PREFILL]
        for lanes, count in shapes:
            if not bench.in_time():
                return
            stages(bench, name, engine, lanes, count)
        for lanes in (2,) if bench.on_cpu else (256, 1024):
            if bench.in_time():
                frames(bench, name, model, native, lanes)


def stages(bench, name: str, engine, lanes: int, count: int) -> None:
    from lmzip.token_answers import INPUT, QUESTION_WORDS
    from lmzip.torch_llama import LlamaLanes

    a = engine.arch
    positions = max(a.windows) + max(a.sinks) + count
    state = engine.start(lanes, positions, count, graph=True)
    state.position.fill_(positions)  # full windows
    costs = dict(step_costs(a, lanes, count))
    for stage, call in stage_calls(bench, engine, state, lanes, count):
        # "attention, 32 keys, 1 warps" costs what attention does.
        bench.stage(name, lanes, count, stage, bench.seconds(call), costs[stage.split(",")[0]])
    del state
    block = LlamaLanes(engine, lanes, count, positions, count == 1)
    questions = bench.numbers(a.vocabulary, lanes, count, QUESTION_WORDS)
    slots = bench.numbers(1 << 30, lanes)
    slots[int(REST * lanes) + 1 :] = 0xFFFFFFFF
    questions[..., INPUT] = a.start

    def whole() -> None:
        block.launch(questions)
        block.wait()
        if count == 1:
            block.search(slots)

    seconds = bench.wall(whole)
    bench.add(
        what="stage", model=name, lanes=lanes, count=count, stage="whole block",
        us=f"{1e6 * seconds:.1f}", tokens_s=f"{lanes * count / seconds:.0f}",
        note="graphs with their copies, what the coder asks",
    )  # fmt: skip


def stage_calls(bench, engine, state, lanes: int, count: int) -> Iterator[tuple[str, Callable]]:
    """Those of the last layer.  Beside products, what PyTorch takes for the same sums alone; beside
    attention, other tiles."""
    from lmzip import triton_llama
    from lmzip import triton_llama_kernels as kernels
    from lmzip.token_answers import QUESTION_WORDS, TARGET

    a, torch = engine.arch, bench.torch
    rows = lanes * count
    layer, cache = engine.layers[-1], state.caches[-1]
    tokens = torch.full((rows,), a.start, dtype=torch.int32, device=bench.device)
    x, _ = engine.embed(tokens)
    xq = engine.normalize(x, layer.attention_norm, layer.qkv)
    u = engine.project_heads(layer, xq)
    heads = engine.split_heads(layer, u, cache, state.position, count)
    p = engine.attention(layer, heads, cache, state.position, count)
    pq = engine.quantize(layer.out, p)
    gq = engine.normalize(x, layer.mlp_norm, layer.gate_up)
    h = engine.gate(layer.gate_up, gq)
    hq = engine.quantize(layer.down, h, gq.r)
    hd = engine.normalize(x, engine.head_norm, engine.head)
    logits = engine.logits(hd)
    questions = torch.full((rows, QUESTION_WORDS), -1, dtype=torch.int32, device=bench.device)
    answers = engine.survey(logits, questions)
    # So many rows are looked into again: the first ones have a target, or a slot.
    asked = torch.arange(rows, device=bench.device) <= REST * rows
    slots = torch.where(asked, 1 << 29, -1).int()
    questions[:, TARGET] = torch.where(asked, 1, -1)

    def attend():
        return engine.attention(layer, heads, cache, state.position, count)

    yield "token embed", lambda: engine.embed(tokens)
    yield "qkv product", lambda: engine.project_heads(layer, xq)
    yield "token split_heads", lambda: engine.split_heads(layer, u, cache, state.position, count)
    yield "attention", attend
    before = triton_llama.KEYS, triton_llama.STEP_WARPS, triton_llama.BLOCK_WARPS
    for keys, warps in KEY_TILES[: 1 if bench.on_cpu else None]:
        triton_llama.KEYS = keys
        triton_llama.STEP_WARPS = triton_llama.BLOCK_WARPS = warps
        yield f"attention, {keys} keys, {warps} warps", attend
    triton_llama.KEYS, triton_llama.STEP_WARPS, triton_llama.BLOCK_WARPS = before
    yield "quantize", lambda: engine.quantize(layer.down, h, gq.r)
    yield "out product", lambda: engine.add_part(layer.out, layer.attention_post_norm, x, pq)
    yield "normalize", lambda: engine.normalize(x, layer.mlp_norm, layer.gate_up)
    yield "gate product", lambda: engine.gate(layer.gate_up, gq)
    yield "down product", lambda: engine.add_part(layer.down, layer.mlp_post_norm, x, hq)
    yield "head product", lambda: engine.logits(hd)
    yield "survey", lambda: engine.survey(logits, questions)
    if count == 1:
        yield "search", lambda: engine.search(logits, questions, answers, slots)
    else:
        yield "targets", lambda: engine._for_rows(kernels.targets, logits, questions, answers)
    for stage, product, q in (
        ("qkv", layer.qkv, xq), ("out", layer.out, pq), ("gate", layer.gate_up, gq),
        ("down", layer.down, hq), ("head", engine.head, hd),
    ):  # fmt: skip
        both = q.q.flatten(0, 1)
        if len(both) < 32:
            both = torch.nn.functional.pad(both, (0, 0, 0, 32 - len(both)))
        columns = product.weight[: len(product.weight) // 8 * 8].T
        yield (
            f"{stage} product, torch._int_mm",
            lambda both=both, columns=columns: torch._int_mm(both, columns),
        )


def frames(bench, name: str, model, native, lanes: int) -> None:
    """Frames of random tokens through the codec's worker, both ways, one compared with the CPU."""
    import numpy as np

    from lmzip import _core, codec
    from lmzip.container import METHOD_TOKENS
    from lmzip.device_codec import Job
    from lmzip.torch_token_codec import TokenJob, TokenWorker

    count, each, length = (2, 1, 6) if bench.on_cpu else (lanes // 64, 64, 256)
    threads = codec.usable_threads(0)
    coding = METHOD_TOKENS, 0, codec.TOKEN_PROFILE, [codec.ThreadShare(threads)]
    worker = TokenWorker(model, native, bench.device, 0)
    if bench.on_cpu:  # the interpreter, not PyTorch's own operations
        from lmzip.triton_llama import TritonLlama

        worker.__dict__["_engine"] = TritonLlama(model, bench.device)
    spelled = [i for i, token in enumerate(model.tokens) if len(token) == 1]
    rng = np.random.default_rng(3)
    drawn = rng.choice(spelled, (count, each * length)).tolist()
    raws = [b"".join(model.tokens[t] for t in frame) for frame in drawn]
    jobs = [
        TokenJob(each, len(raw), raw, None, *coding, frame)
        for raw, frame in zip(raws, drawn, strict=True)
    ]

    def timed(work):
        start = time.perf_counter()
        return work(), time.perf_counter() - start

    if not bench.on_cpu:
        worker.run(jobs)  # kernels, graphs
    payloads, encode = timed(lambda: worker.run(jobs))
    back = [Job(each, len(raw), b"", p, *coding) for raw, p in zip(raws, payloads, strict=True)]
    if not bench.on_cpu:
        worker.run(back)
    decoded, decode = timed(lambda: worker.run(back))
    if decoded != raws:
        raise SystemExit("the decoded bytes differ: this is a bug in lmzip")
    if _core.encode_tokens(native, drawn[0], each, threads) != payloads[0]:
        raise SystemExit("the payloads differ from the CPU's: a bug in lmzip")
    tokens = count * each * length
    for direction, seconds in (("encode", encode), ("decode", decode)):
        bench.add(
            what="frames", model=name, lanes=count * each, raw=sum(map(len, raws)),
            direction=direction, stage="network", tokens_s=f"{tokens / seconds:.0f}",
            note=f"{count} frames of random tokens, 1 equal to native",
        )  # fmt: skip
