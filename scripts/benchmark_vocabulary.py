"""Time and memory of log-probabilities and entropies over a large vocabulary: in blocks of tokens, and from all logits.

    python scripts/benchmark_vocabulary.py --vocabulary 131072 --tokens 128 512 2048

Each measurement is a forward and backward pass in a process of its own, with one thread; the second of two passes
counts. Memory is the peak above what the process holds before the first pass: with the gradient of the head's weights,
which both need.
"""

import argparse
import resource
import subprocess
import sys
import time

METHODS = ("blocks", "all logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=256, help="of the hidden states (default 256)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method is not None:
        measure(options.method, options.tokens[0], options.vocabulary, options.width)
        return
    print(f"vocabulary {options.vocabulary:,}, width {options.width}")
    for tokens in options.tokens:
        for method in METHODS:
            command = [sys.executable, __file__, "--method", method, "--tokens", str(tokens)]
            command += ["--vocabulary", str(options.vocabulary), "--width", str(options.width)]
            subprocess.run(command, check=True)


def measure(method: str, tokens: int, vocabulary: int, width: int) -> None:
    import torch

    from rlhf.models.distribution import LogitTransform, OutputHead
    from rlhf.models.token_statistics import token_statistics
    from rlhf.run.allocator import keep_freed_memory
    from tabular.core.distributions import categorical_entropy, categorical_logprob

    torch.set_num_threads(1)
    keep_freed_memory()
    layer = torch.nn.Linear(width, vocabulary, bias=False)
    head = OutputHead(layer)
    states = torch.randn(tokens, width, requires_grad=True)
    token_ids = torch.randint(0, vocabulary, (tokens,))
    peak_before = peak_mb()
    seconds = 0.0
    for _ in range(2):
        start = time.process_time()
        if method == "blocks":
            out = token_statistics(states, head, token_ids, torch.zeros_like(token_ids), LogitTransform())
            logprobs, entropy = out.logprobs, out.entropy
        else:
            logits = head(states)
            logprobs, entropy = categorical_logprob(logits, token_ids), categorical_entropy(logits.detach())
        logprobs.sum().backward()
        seconds = time.process_time() - start
        layer.weight.grad = states.grad = None
        del entropy
    print(f"  {tokens:6,} tokens, {method:<10} {seconds:6.2f} s  {peak_mb() - peak_before:8,.0f} MB")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
