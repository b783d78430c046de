"""Memory and time until data is ready, in memory and on disk: `python scripts/measure_data_memory.py --megabytes 200`.

Makes a jsonl file of demonstrations in a temporary folder and tokenises it twice, each time in a new process: as `rlhf
sft` does by default, and with `data.streaming`. Memory is the largest anonymous memory of the process, which the kernel
cannot give back as it can pages of mapped files.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WORDS = ("the", "film", "is", "a", "good", "story", "about", "people", "who", "never", "speak", "of", "what", "they")


def anonymous_megabytes() -> float:
    """Of this process, now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def load(path: str, tokenizer_path: str, streaming: bool) -> None:
    """Load and tokenise, read a batch, and print the memory above that of the imports, and the seconds."""
    from rlhf.data.datasets import load_rows
    from rlhf.data.demonstrations import encode_demonstrations, stream_demonstrations
    from rlhf.models.loading import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    before, peak, ended = anonymous_megabytes(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, anonymous_megabytes())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    rows = load_rows(path, "train", streaming)
    encode = stream_demonstrations if streaming else encode_demonstrations
    examples = encode(tokenizer, rows, 512, path)
    batch = [examples[i] for i in range(0, len(examples), max(1, len(examples) // 64))]
    seconds = time.perf_counter() - start
    ended.set()
    thread.join()
    tokens = sum(len(example.ids) for example in batch) / len(batch) * len(examples)
    print(json.dumps({"rows": len(examples), "tokens": tokens, "megabytes": peak - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=200.0, help="size of the file (default: %(default)s)")
    parser.add_argument("--tokenizer", required=True, help="a model's folder or hub id")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        load(options.load[0], options.tokenizer, options.load[1] == "disk")
        return
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            while file.tell() < options.megabytes * 1e6:
                text = " ".join(generator.choice(WORDS) for _ in range(200))
                file.write(json.dumps({"text": text}) + "\n")
        results = {}
        for kind in ("memory", "disk"):
            command = [sys.executable, __file__, "--tokenizer", options.tokenizer, "--load", str(path), kind]
            environment = {"HF_DATASETS_CACHE": folder, "TMPDIR": folder, "TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            results[kind] = json.loads(done.stdout.splitlines()[-1])
    for kind, result in results.items():
        print(f"{kind:>6}: {result['megabytes']:,.0f} MB, {result['seconds']:.0f} s, {result['tokens']:,.0f} tokens")
    print(f"ratio of memory {results['memory']['megabytes'] / results['disk']['megabytes']:.1f}")


if __name__ == "__main__":
    main()
