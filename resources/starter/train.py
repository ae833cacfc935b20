"""Train the starter model: a small Llama-shaped language model on public-domain books.

One file does everything: it trains the tokenizer, trains the network, saves both in the layout that
``transformers`` reads, and measures the saved bfloat16 model in bits per byte on a text that was held out.

    python train.py --corpus books.txt --valid valid.txt --out model --work work --minutes 110

The corpus is plain UTF-8 text (``.xz`` is unpacked on the fly), with books separated by ``<|endoftext|>``.
The learning rate follows elapsed *training* time, so the run ends with a finished decay however busy the
machine was. ``--resume`` goes on from the last checkpoint. The same command trains on a GPU if there is one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import lzma
import math
import os
import random
import re
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
SPECIALS = [END_OF_TEXT, PAD, "<|user|>", "<|assistant|>", "<|end|>"]
VOCAB, WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 8192, 256, 6, 4, 1024, 1024
HEAD = WIDTH // HEADS
ROPE_THETA, NORM_EPS = 10000.0, 1e-6
HOLDOUT_EVERY, HOLDOUT_CHARS = 8, 32768
# Sequence length as a function of progress: short ones are cheaper, the last ones fill the context.
PHASES = ((0.50, 256), (0.80, 512), (math.inf, 1024))
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>\n{{ message['content'] | trim }}<|end|>\n"
    "{% elif message['role'] == 'user' %}<|user|>\n{{ message['content'] | trim }}<|end|>\n"
    "{% else %}{{ message['content'] | trim }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Polar Express: the coefficients of five quintic steps towards the orthogonal factor of a matrix.
POLAR_STEPS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


# --- text -----------------------------------------------------------------------------------------------


def read_books(path: Path) -> list[str]:
    """Return the books of a corpus file, without the separators."""
    raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return [book.strip() for book in raw.decode("utf-8").split(END_OF_TEXT) if book.strip()]


def split_holdout(books: list[str]) -> tuple[list[str], list[str]]:
    """Cut the end off every eighth book; what is cut off guides the run and is never trained on."""
    train, held = list(books), []
    for index in range(0, len(books), HOLDOUT_EVERY):
        if len(books[index]) > 4 * HOLDOUT_CHARS:
            train[index] = books[index][:-HOLDOUT_CHARS]
            held.append(books[index][-HOLDOUT_CHARS:])
    return train, held


def dialogues(books: list[str], share: float) -> list[str]:
    """Lay out spoken exchanges of the books as chats, so that the chat tokens are not untrained.

    A run of paragraphs that each open with a quotation mark is read as two people speaking in turn.
    """
    chats = []
    for book in books:
        for run in re.findall(r'(?:(?<=\n\n)"[^\n]{20,300}\n\n){2,6}', book):
            turns = [turn.strip() for turn in run.strip().split("\n\n")]
            turns = turns[: len(turns) // 2 * 2]
            roles = ["<|user|>", "<|assistant|>"] * (len(turns) // 2)
            lines = [f"{role}\n{turn}<|end|>\n" for role, turn in zip(roles, turns, strict=True)]
            chats.append("".join(lines))
    limit, kept, size = share * sum(map(len, books)), [], 0
    random.Random(0).shuffle(chats)  # noqa: S311 - this is no secret
    for chat in chats:
        if size < limit:
            kept.append(chat)
            size += len(chat)
    return kept


def train_tokenizer(books: list[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer: it can write any text, and it never meets an unknown character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator(books, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Encode documents into one stream, each opened by the end-of-text token."""
    bos = tokenizer.token_to_id(END_OF_TEXT)
    pieces = []
    for start in range(0, len(documents), 256):
        for encoding in tokenizer.encode_batch(documents[start : start + 256]):
            pieces.append(np.array([bos, *encoding.ids], dtype=np.uint16))
    return np.concatenate(pieces)


@dataclass
class Corpus:
    """The encoded training stream, the slice held out of it, and the size of that slice in bytes."""

    train: np.ndarray
    held: np.ndarray
    held_bytes: int


def prepare(args: argparse.Namespace) -> tuple[Tokenizer, Corpus]:
    """Train the tokenizer and encode the corpus, or read both back from the work folder."""
    tokenizer_path, tokens_path = args.work / "tokenizer.json", args.work / "tokens.npz"
    if not tokens_path.exists():
        train, held = split_holdout(read_books(args.corpus))
        tokenizer = train_tokenizer(train)
        chats = dialogues(train, args.chat_share)
        args.work.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(tokenizer_path))
        np.savez(
            tokens_path,
            train=encode(tokenizer, train + chats),
            held=encode(tokenizer, held),
            held_bytes=len("".join(held).encode()),
        )
    stored = np.load(tokens_path)
    corpus = Corpus(stored["train"], stored["held"], int(stored["held_bytes"]))
    return Tokenizer.from_file(str(tokenizer_path)), corpus


@dataclass
class Sampler:
    """Serves every block of the stream once per epoch, in a random order and at a random offset."""

    stream: np.ndarray
    batch_tokens: int
    seed: int
    epoch: int = 0
    cursor: int = 0
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    pool: list[np.ndarray] = field(default_factory=list)

    def _starts(self) -> np.ndarray:
        """Return the block starts of the current epoch; they follow from the seed alone."""
        rng = np.random.default_rng((self.seed, self.epoch))
        offset = int(rng.integers(CONTEXT))
        return offset + CONTEXT * rng.permutation((len(self.stream) - 1 - offset) // CONTEXT)

    def _refill(self, length: int) -> None:
        """Cut the next blocks into windows of the wanted length and shuffle those among each other."""
        count = 8 * max(1, self.batch_tokens // CONTEXT)
        if not len(self.order):
            self.order = self._starts()
        if self.cursor + count > len(self.order):
            self.epoch, self.cursor = self.epoch + 1, 0
            self.order = self._starts()
        starts = self.order[self.cursor : self.cursor + count]
        self.cursor += count
        windows = [self.stream[s : s + length + 1] for b in starts for s in range(b, b + CONTEXT, length)]
        shuffle = np.random.default_rng((self.seed, self.epoch, self.cursor)).permutation(len(windows))
        self.pool = [windows[i] for i in shuffle]

    def next(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of one batch of windows of the given length."""
        rows = self.batch_tokens // length
        if len(self.pool) < rows or len(self.pool[0]) != length + 1:
            self._refill(length)
        batch, self.pool = np.stack(self.pool[:rows]).astype(np.int64), self.pool[rows:]
        tokens = torch.from_numpy(batch).to(device)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# --- network --------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Normalise by the root mean square, in float32."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + NORM_EPS)
    return (scaled * gain).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in the half-split layout of Llama."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal attention; on a CPU the plain formula, fused by the compiler, beats the library kernel."""
    if q.is_cuda:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = q @ k.transpose(-1, -2)
    return torch.softmax(scores * HEAD**-0.5 + mask, dim=-1) @ v


def block(x: Tensor, attn: Tensor, mlp: Tensor, gains: Tensor, rope: Tensor, mask: Tensor) -> Tensor:
    """One Llama layer. ``attn`` stacks q, k, v, o; ``mlp`` stacks gate, up and the transposed down."""
    rows, length, _ = x.shape
    attn, mlp = attn.to(x.dtype), mlp.to(x.dtype)
    qkv = functional.linear(rms_norm(x, gains[0]), attn[:3].reshape(3 * WIDTH, WIDTH))
    q, k, v = qkv.view(rows, length, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
    q, k = rotate(q, rope[0], rope[1]), rotate(k, rope[0], rope[1])
    mixed = attend(q, k, v, mask).transpose(1, 2).reshape(rows, length, WIDTH)
    x = x + functional.linear(mixed, attn[3])
    both = functional.linear(rms_norm(x, gains[1]), mlp[:2].reshape(2 * HIDDEN, WIDTH))
    gate, up = both.chunk(2, dim=-1)
    return x + (functional.silu(gate) * up) @ mlp[2]


def head_chunk(h: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed cross entropy of a few positions, and its gradients for input and weight."""
    logits = (h @ weight.T).float()
    lse = torch.logsumexp(logits, dim=-1, keepdim=True)
    picked = torch.gather(logits, 1, target[:, None])
    hot = torch.arange(VOCAB, device=h.device)[None, :] == target[:, None]
    slope = (torch.exp(logits - lse) - hot.float()).to(h.dtype)
    return (lse - picked).sum(), slope @ weight, slope.T @ h


class FusedHead(torch.autograd.Function):
    """Mean cross entropy over the vocabulary in chunks: the full matrix of logits never exists."""

    chunk: Callable[..., tuple[Tensor, Tensor, Tensor]] = staticmethod(head_chunk)
    rows: int = 1024

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """Compute the loss and both gradients in one pass."""
        narrow = weight.to(h.dtype)
        grad_h, grad_w = torch.empty_like(h), torch.zeros_like(weight)
        total = torch.zeros((), device=h.device)
        for start in range(0, len(h), FusedHead.rows):
            part = slice(start, start + FusedHead.rows)
            loss, grad_h[part], update = FusedHead.chunk(h[part], narrow, target[part])
            grad_w += update
            total += loss
        ctx.save_for_backward(grad_h, grad_w)
        return total / len(h)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the gradients that the forward pass kept."""
        grad_h, grad_w = ctx.saved_tensors
        scale = upstream / len(grad_h)
        return (grad_h * scale).to(grad_h.dtype), grad_w * scale, None


class Starter(nn.Module):
    """The network, with the matrices of all layers stacked so that the optimizer can batch them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=rng) * 0.02)
        self.attn = nn.Parameter(torch.randn(LAYERS, 4, WIDTH, WIDTH, generator=rng) * 0.5 * WIDTH**-0.5)
        self.mlp = nn.Parameter(torch.randn(LAYERS, 3, HIDDEN, WIDTH, generator=rng) * 0.5 * WIDTH**-0.5)
        self.gains = nn.Parameter(torch.ones(LAYERS, 2, WIDTH))
        self.final_gain = nn.Parameter(torch.ones(WIDTH))
        with torch.no_grad():
            self.attn[:, 3].zero_()
            self.mlp[:, 2].zero_()
        self.block: Callable[..., Tensor] = block
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rotary table and the causal mask for one sequence length."""
        if length not in self.tables:
            inverse = ROPE_THETA ** (-torch.arange(0, HEAD, 2, dtype=torch.float32) / HEAD)
            angle = torch.outer(torch.arange(length, dtype=torch.float32), inverse).repeat(1, 2)
            mask = torch.full((length, length), -1e9).triu(1)
            rope = torch.stack((angle.cos(), angle.sin()))
            self.tables[length] = rope.to(device, torch.bfloat16), mask.to(device, torch.bfloat16)
        return self.tables[length]

    def forward(self, tokens: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy in nats."""
        rope, mask = self.positions(tokens.shape[1], tokens.device)
        x = functional.embedding(tokens, self.embed).to(torch.bfloat16)
        for layer in range(LAYERS):
            x = self.block(x, self.attn[layer], self.mlp[layer], self.gains[layer], rope, mask)
        x = rms_norm(x, self.final_gain)
        return FusedHead.apply(x.reshape(-1, WIDTH), self.embed, target.reshape(-1))


# --- optimizer ------------------------------------------------------------------------------------------


def orthogonalise(update: Tensor) -> Tensor:
    """Replace every matrix of a batch by (nearly) its orthogonal polar factor."""
    x = update.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6).to(x.dtype)
    for a, b, c in POLAR_STEPS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class NorMuon:
    """Muon for stacks of matrices: orthogonalised momentum, evened out over rows, decoupled decay."""

    def __init__(self, params: list[nn.Parameter], decay: float) -> None:
        self.params, self.decay = params, decay
        self.momentum = [torch.zeros_like(p) for p in params]
        self.rows = [torch.zeros_like(p[..., :1]) for p in params]

    @torch.no_grad()
    def step(self, rate: float, beta: float, count: int) -> None:
        """Apply one update; ``count`` is the number of updates so far, this one included."""
        for param, momentum, rows in zip(self.params, self.momentum, self.rows, strict=True):
            if param.grad is None:
                continue
            momentum.lerp_(param.grad, 1 - beta)
            flat = torch.lerp(param.grad, momentum, beta).flatten(0, -3)
            update = orthogonalise(flat).view_as(param)
            rows.lerp_(update.square().mean(-1, keepdim=True), 0.05)
            even = update * torch.rsqrt(rows / (1 - 0.95**count) + 1e-10)
            before, after = (m.norm(dim=(-2, -1), keepdim=True) for m in (update, even))
            even *= before / after.clamp_min(1e-6)
            param.mul_(1 - rate * self.decay)
            param.add_(even, alpha=-rate * math.sqrt(param.shape[-2] / param.shape[-1]))
            param.grad = None

    def state(self) -> list[list[Tensor]]:
        """Return what a checkpoint has to keep."""
        return [self.momentum, self.rows]

    def load(self, state: list[list[Tensor]]) -> None:
        """Take back the state of a checkpoint."""
        for mine, saved in zip(self.momentum + self.rows, state[0] + state[1], strict=True):
            mine.copy_(saved)


# --- training -------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far the run has come; time stands still while the process is stopped."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    done: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=101))
    log: list[dict[str, float]] = field(default_factory=list)

    def add(self, duration: float, args: argparse.Namespace) -> None:
        """Count one step; a pause or a compilation counts as five ordinary steps at most."""
        self.step, self.tokens = self.step + 1, self.tokens + args.batch_tokens
        counted = min(duration, 5 * statistics.median(self.recent)) if self.recent else 0.0
        if self.recent or self.step > 1:
            self.recent.append(duration)
        self.seconds += counted
        if args.steps:
            self.done = self.step / args.steps
        elif args.deadline:
            left = args.deadline - time.monotonic()
            self.done += (1 - self.done) * (counted / (counted + left) if left > 0 else 1.0)
        else:
            self.done += counted / (60 * args.minutes)


class Trainer:
    """Holds everything that a checkpoint keeps, and makes the steps."""

    def __init__(self, args: argparse.Namespace, corpus: Corpus) -> None:
        self.args, self.corpus = args, corpus
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            FusedHead.rows = args.batch_tokens  # one large product instead of many that a GPU would wait between
        self.model = Starter(args.seed).to(self.device)
        model = self.model
        self.muon = NorMuon([model.attn, model.mlp], args.decay)
        rest = [model.embed, model.gains, model.final_gain]
        self.adam = torch.optim.Adam(rest, lr=0.0, betas=(0.9, 0.95), eps=1e-10)
        self.sampler = Sampler(corpus.train, args.batch_tokens, args.seed)
        self.progress = Progress()
        if not args.eager:
            model.block = torch.compile(block, dynamic=False)
            FusedHead.chunk = staticmethod(torch.compile(head_chunk, dynamic=False))

    def rates(self) -> float:
        """Return the factor on the learning rates: a short warm-up, then a straight line to zero."""
        warm = min(1.0, (self.progress.step + 1) / self.args.warmup)
        return warm * max(0.0, 1.0 - self.progress.done)

    def length(self) -> int:
        """Return the sequence length of the current phase."""
        done = self.progress.done
        return next(length for until, length in PHASES if done < until)

    def step(self) -> float:
        """Make one update and return its loss."""
        started, factor = time.perf_counter(), self.rates()
        loss = self.model(*self.sampler.next(self.length(), self.device))
        loss.backward()
        beta = 0.85 + 0.10 * min(1.0, self.progress.step / 300)
        self.muon.step(self.args.matrix_rate * factor, beta, self.progress.step + 1)
        for group in self.adam.param_groups:
            group["lr"] = self.args.rate * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        value = float(loss.detach())
        self.progress.add(time.perf_counter() - started, self.args)
        return value

    @torch.no_grad()
    def held_out(self) -> float:
        """Return bits per byte on the held-out slice of the corpus, in separate windows."""
        length = self.length()
        rows, held = self.args.batch_tokens // length, self.corpus.held.astype(np.int64)
        size, losses = rows * length, []
        for start in range(0, len(held) - size, size):
            tokens = torch.from_numpy(held[start : start + size + 1]).to(self.device)
            losses.append(float(self.model(tokens[:-1].view(rows, length), tokens[1:].view(rows, length))))
        return statistics.fmean(losses) / math.log(2) * len(held) / self.corpus.held_bytes

    def save(self) -> None:
        """Write a checkpoint; the old one stays until the new one is complete."""
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.state(),
            "adam": self.adam.state_dict(),
            "sampler": (self.sampler.epoch, self.sampler.cursor),
            "progress": asdict(self.progress),
        }
        fresh = self.args.work / "checkpoint.tmp"
        torch.save(state, fresh)
        fresh.replace(self.args.work / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the checkpoint in the work folder."""
        path = self.args.work / "checkpoint.pt"
        state = torch.load(path, map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.muon.load(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.sampler.epoch, self.sampler.cursor = state["sampler"]
        self.progress = Progress(**state["progress"])


def record(trainer: Trainer, loss: float | None, held: float | None) -> None:
    """Add a line to the log and print it."""
    progress = trainer.progress
    line: dict[str, float] = {
        "step": progress.step,
        "tokens": progress.tokens,
        "minutes": round(progress.seconds / 60, 2),
        "length": trainer.length(),
    }
    if loss is not None:
        line["loss"] = round(loss, 4)
    if held is not None:
        line["held_out_bits_per_byte"] = round(held, 4)
    progress.log.append(line)
    rate = trainer.args.batch_tokens / statistics.median(progress.recent)
    print(json.dumps(line), f"{rate:.0f} tokens/s", f"{progress.done:.1%}", flush=True)


def train(trainer: Trainer) -> None:
    """Step until the budget is used up, with a log line, a measurement and a checkpoint now and then."""
    args, progress, losses = trainer.args, trainer.progress, []
    saved = measured = progress.seconds
    while progress.done < 1.0:
        losses.append(trainer.step())
        if progress.step % args.log_every == 0:
            due = progress.seconds - measured > 60 * args.measure_minutes
            measured = progress.seconds if due else measured
            record(trainer, statistics.fmean(losses), trainer.held_out() if due else None)
            losses = []
        if progress.seconds - saved > 60 * args.checkpoint_minutes:
            trainer.save()
            saved = progress.seconds
    record(trainer, statistics.fmean(losses) if losses else None, trainer.held_out())
    trainer.save()


# --- saving and measuring -------------------------------------------------------------------------------


def named_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names that LlamaForCausalLM gives them, in bfloat16."""
    weights = {"model.embed_tokens.weight": state["embed"], "model.norm.weight": state["final_gain"]}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        attn, mlp, gains = state["attn"][layer], state["mlp"][layer], state["gains"][layer]
        for name, matrix in zip("qkvo", attn, strict=True):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = matrix
        weights[f"{prefix}mlp.gate_proj.weight"] = mlp[0]
        weights[f"{prefix}mlp.up_proj.weight"] = mlp[1]
        weights[f"{prefix}mlp.down_proj.weight"] = mlp[2].T
        weights[f"{prefix}input_layernorm.weight"] = gains[0]
        weights[f"{prefix}post_attention_layernorm.weight"] = gains[1]
    return {name: w.detach().cpu().to(torch.bfloat16).contiguous() for name, w in weights.items()}


def llama_config(tokenizer: Tokenizer) -> LlamaConfig:
    """Describe the network to transformers."""
    bos = tokenizer.token_to_id(END_OF_TEXT)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=bos,
        pad_token_id=tokenizer.token_to_id(PAD),
        dtype="bfloat16",
    )


def export(state: dict[str, Tensor], tokenizer: Tokenizer, out: Path) -> None:
    """Write the model folder: weights, configuration, tokenizer and generation settings."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(named_weights(state), out / "model.safetensors", metadata={"format": "pt"})
    llama_config(tokenizer).save_pretrained(out)
    bos, pad, end = (tokenizer.token_to_id(t) for t in (END_OF_TEXT, PAD, "<|end|>"))
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    settings = GenerationConfig(bos_token_id=bos, eos_token_id=[bos, end], pad_token_id=pad, **sampling)
    settings.save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=SPECIALS[2:],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)


@torch.no_grad()
def document_bits(model: nn.Module, ids: list[int], stride: int) -> float:
    """Return the bits of ids[1:] in a sliding window; every token is scored exactly once."""
    bits, scored = 0.0, 1
    for start in range(0, len(ids), stride):
        window = torch.tensor([ids[start : start + CONTEXT]], device=next(model.parameters()).device)
        fresh = start + window.shape[1] - scored
        if fresh <= 0:
            break
        logits = model(window).logits[0, -fresh - 1 : -1].float()
        bits += float(functional.cross_entropy(logits, window[0, -fresh:], reduction="sum")) / math.log(2)
        scored += fresh
    if scored != len(ids):
        raise ValueError(f"{scored} of {len(ids)} tokens were scored")
    return bits


def bits_per_byte(folder: Path, text: Path, stride: int = CONTEXT // 2) -> dict[str, float]:
    """Measure a saved model: bits of all tokens of all documents, over the bytes of those documents."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bits, size, count = 0.0, 0, 0
    for document in read_books(text):
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        bits += document_bits(model, [tokenizer.bos_token_id, *ids], stride)
        size, count = size + len(document.encode("utf-8")), count + len(ids)
    return {"bits_per_byte": round(bits / size, 4), "bytes": size, "scored_tokens": count}


def finish(trainer: Trainer, tokenizer: Tokenizer) -> None:
    """Save the model and its log, then measure what was saved."""
    args, progress = trainer.args, trainer.progress
    export(trainer.model.state_dict(), tokenizer, args.out)
    result = {"steps": progress.step, "tokens": progress.tokens, "minutes": round(progress.seconds / 60, 1)}
    if args.valid:
        result |= bits_per_byte(args.out, args.valid)
        print(
            f"{result['bits_per_byte']} bits per byte on {result['bytes']} bytes: saved bfloat16 model, "
            f"sliding window of {CONTEXT} tokens with stride {CONTEXT // 2}, {END_OF_TEXT} before each "
            "document, every token scored once"
        )
    text = json.dumps({"result": result, "log": progress.log}, indent=0)
    (args.out / "training_log.json").write_text(text + "\n", encoding="utf-8")


def keep_memory() -> None:
    """Ask glibc to keep freed memory: fresh pages for every activation would cost half of the speed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 * 2**20)):
        mallopt(option, value)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--corpus", type=Path, required=True, help="training text, plain or .xz")
    parser.add_argument("--valid", type=Path, help="text for the final measurement; never trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens and checkpoints")
    parser.add_argument("--minutes", type=float, default=110.0, help="training time")
    parser.add_argument("--wall-minutes", type=float, help="end this long after the start, whatever happens")
    parser.add_argument("--steps", type=int, default=0, help="number of updates, instead of --minutes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--matrix-rate", type=float, default=0.03, help="peak rate of the matrices (Muon)")
    parser.add_argument("--rate", type=float, default=0.01, help="peak rate of everything else (Adam)")
    parser.add_argument("--decay", type=float, default=0.03, help="weight decay of the matrices")
    parser.add_argument("--warmup", type=int, default=100, help="updates until the peak rate")
    parser.add_argument("--chat-share", type=float, default=0.01, help="dialogue laid out as chat")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--measure-minutes", type=float, default=5.0)
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--export-only", action="store_true", help="save the last checkpoint as a model")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    return parser.parse_args()


def main() -> None:
    """Train, save and measure."""
    args = parse()
    args.deadline = time.monotonic() + 60 * args.wall_minutes if args.wall_minutes else 0.0
    keep_memory()
    torch.set_num_threads(args.threads)
    tokenizer, corpus = prepare(args)
    trainer = Trainer(args, corpus)
    if args.resume or args.export_only:
        trainer.resume()
    if not args.export_only:
        train(trainer)
    finish(trainer, tokenizer)


if __name__ == "__main__":
    main()
