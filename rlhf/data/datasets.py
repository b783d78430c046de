"""Files and hub datasets -> checked rows -> token ids. The one place that applies chat templates.

Everything is read, checked and tokenised before a model is loaded, so that a bad row ends a run in its first seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.config.jobs import DataConfig
from rlhf.errors import UserError
from rlhf.records import Prompts

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(path: str, split: str) -> Any:
    """A `datasets.Dataset` from a hub id, a local file, or a folder written by `save_to_disk`.

    Raises:
        UserError: nothing is there, it cannot be read, or it holds no rows.
    """
    import datasets

    place = Path(path)
    datasets.disable_progress_bars()
    try:
        if place.is_file():
            if place.suffix not in _FORMATS:
                raise UserError(f"data file {path} ends in {place.suffix!r}; known: {', '.join(_FORMATS)}")
            if place.stat().st_size == 0:
                raise UserError(f"data file {path} is empty")
            _refuse_split(path, split)
            rows = datasets.load_dataset(_FORMATS[place.suffix], data_files=str(place), split="train")
        elif place.is_dir() and ((place / "state.json").exists() or (place / "dataset_dict.json").exists()):
            rows = datasets.load_from_disk(str(place))
            if isinstance(rows, datasets.DatasetDict):
                if split not in rows:
                    raise UserError(f"data folder {path} has no split {split!r}; it has {', '.join(map(str, rows))}")
                rows = rows[split]
            else:
                _refuse_split(path, split)
        elif place.suffix in _FORMATS or path.startswith((".", "/", "~")):
            raise UserError(f"data file {path} does not exist")
        else:
            rows = datasets.load_dataset(path, split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen kinds for bad files, refused downloads and wrong splits
        if "corresponds to no data" in str(error):
            raise UserError(f"data file {path} holds no rows") from error
        cause = error.__cause__ or error
        raise UserError(f"cannot read data from {path} (split {split}): {type(cause).__name__}: {cause}") from error
    if len(rows) == 0:
        raise UserError(f"data file {path} holds no rows")
    return rows


def _refuse_split(path: str, split: str) -> None:
    if split != "train":
        raise UserError(f"{path} is not divided into splits, so it has no split {split!r}; name a file of its own")


def split_rows(config: DataConfig, seed: int) -> tuple[Any, Any | None]:
    """Training rows and held-out rows (None where there are none)."""
    assert config.path is not None
    rows = load_rows(config.path, config.split)
    if config.eval_path is not None or config.eval_split is not None:
        return rows, load_rows(config.eval_path or config.path, config.eval_split or config.split)
    held_out = int(len(rows) * config.eval_fraction)
    if held_out == 0:
        return rows, None
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[held_out:])), rows.select(np.sort(order[:held_out]))


def held_out_rows(config: DataConfig, seed: int) -> Any:
    """The held-out rows alone; all rows of `path` where nothing is held out."""
    rows, held_out = split_rows(config, seed)
    return rows if held_out is None else held_out


def read_column(rows: Any, name: str, path: str | None) -> list[Any]:
    """A column as it is; `UserError` where its text cannot be decoded."""
    try:
        return list(rows[name])
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


def column(rows: Any, name: str, path: str | None) -> list[Any]:
    """A column whose every entry says something.

    Raises:
        UserError: the column is missing, or an entry is null or empty.
    """
    if name not in rows.column_names:
        found = ", ".join(map(repr, rows.column_names))
        raise UserError(f"{path} has no column {name!r}; it has {found}{delimiter_hint(rows)}")
    values = read_column(rows, name, path)
    for i, value in enumerate(values):
        if not isinstance(value, str | list | None):
            raise UserError(f"{path}, row {i + 1}: {name!r} is {value!r}, but must be text or a list of messages")
        if not value or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{path}, row {i + 1}: {name!r} is {'null' if value is None else 'empty'}")
    return values


def delimiter_hint(rows: Any) -> str:
    """What to do where a single column's name says that a csv file is not divided by commas; else nothing."""
    name = rows.column_names[0] if len(rows.column_names) == 1 else ""
    for sign, word in ((";", "delimiter_hint"), ("\t", "tabs")):
        if sign in name:
            return f" (columns are divided by commas here, and by {word} in this file: save it with commas)"
    return ""


# --------------------------------------------------------------------------------------------------- text to ids


def render_chat(tokenizer: Any, messages: list[Any], generation_prompt: bool) -> str:
    """Messages as the tokenizer's chat template writes them."""
    if not tokenizer.chat_template:
        raise UserError(
            "the data holds messages, but the tokenizer has no chat template; "
            "give one with --model.chat_template file.jinja, or use plain text prompts"
        )
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise UserError(f"a message must be {{'role': ..., 'content': 'text'}}, got {message!r}")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as error:  # whatever the template, a program of its author's, stumbles over
        raise UserError(f"the chat template cannot write these messages: {type(error).__name__}: {error}") from error


def encode_prompts(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Token ids of prompts, ready to be continued: start tokens once, no end token."""
    found: list[list[int]] = [[]] * len(prompts)
    chats = [i for i, prompt in enumerate(prompts) if isinstance(prompt, list)]
    plain = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
    if chats:  # a chat template writes its own start token: the tokenizer must not add a second one
        texts = [render_chat(tokenizer, prompts[i], True) for i in chats]
        for i, ids in zip(chats, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
            found[i] = ids
    if plain:
        eos = tokenizer.eos_token_id
        for i, ids in zip(plain, tokenizer([prompts[i] for i in plain]).input_ids, strict=True):
            found[i] = ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids
    return found


def encode_demonstration(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Token ids of one demonstration, and True where the model shall learn to say the token.

    Everything of a `text`; the completion of `prompt, completion`; the assistant's turns of `messages`.
    """
    eos = [tokenizer.eos_token_id]
    if "messages" in row:
        return _encode_turns(tokenizer, row["messages"])
    if "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list):
            return _encode_turns(tokenizer, [*prompt, *_as_turn(completion)], learn_from=len(prompt))
        start = encode_prompts(tokenizer, [prompt])[0]
        rest = tokenizer(completion, add_special_tokens=False).input_ids + eos
        return start + rest, [False] * len(start) + [True] * len(rest)
    ids = encode_prompts(tokenizer, [row["text"]])[0] + eos
    return ids, [True] * len(ids)


def _encode_turns(tokenizer: Any, messages: list[dict[str, Any]], learn_from: int = 0) -> tuple[list[int], list[bool]]:
    text = render_chat(tokenizer, messages, False)
    spans = []
    for i, message in enumerate(messages):
        if i >= learn_from and message["role"] == "assistant":
            before = render_chat(tokenizer, messages[:i], True)
            upto = render_chat(tokenizer, messages[: i + 1], False)
            if not (upto.startswith(before) and text.startswith(upto)):
                raise UserError(
                    "the tokenizer's chat template rewrites earlier turns, so the assistant's words cannot be told "
                    "apart; use the columns prompt and completion instead"
                )
            spans.append((len(before), len(upto)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learn = [any(a <= start < b for a, b in spans) for start, _ in encoded["offset_mapping"]]
    return encoded.input_ids, learn


def _as_turn(completion: Any) -> list[dict[str, Any]]:
    return completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]


def encode_answers(
    tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], append_eos: bool, max_length: int
) -> list[list[int]]:
    """Token ids of prompt and answer together, as a reward model reads them."""
    encoded = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(prompt, list) or isinstance(completion, list):
            turns = (prompt if isinstance(prompt, list) else []) + _as_turn(completion)
            # Templates that break the line after the end token would hide it, and a second one would be appended.
            ids = tokenizer(render_chat(tokenizer, turns, False).rstrip(), add_special_tokens=False).input_ids
        else:
            ids = tokenizer(prompt + completion).input_ids
        eos = tokenizer.eos_token_id
        ids = ids[: max_length - append_eos]
        encoded.append([*ids, eos] if append_eos and (not ids or ids[-1] != eos) else ids)
    return encoded


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Token lists as a matrix [B, L], and the mask that is True on their tokens."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    return ids, mask


# ------------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class PromptSet:
    """Tokenised prompts, in the dataset's order."""

    prompts: list[Any]
    ids: list[list[int]]
    columns: dict[str, list[Any]]
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Prompts:
        """The given prompts, left-padded to the longest of them."""
        ids, mask = pad([self.ids[i] for i in indices], self.pad_id, "left")
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Prompts(ids, mask, [self.prompts[i] for i in indices], columns)

    def stream(self, start: int, count: int, seed: int) -> list[int]:
        """Prompts `start` to `start + count` of an endless sequence of passes, each in a new random order.

        A function of its arguments alone: a resumed run needs no more than the number of episodes so far.
        """
        picked: list[int] = []
        while len(picked) < count:
            turn, offset = divmod(start + len(picked), len(self))
            order = np.random.default_rng([seed, turn]).permutation(len(self))
            picked += order[offset : offset + count - len(picked)].tolist()
        return picked


def prepare_prompts(tokenizer: Any, rows: Any, config: DataConfig, pad_id: int, path: str | None = None) -> PromptSet:
    """Check and tokenise the `prompt` column.

    Raises:
        UserError: the column is missing, a prompt is null, empty or longer than `max_prompt_length`.
    """
    path = path or config.path
    prompts = column(rows, "prompt", path)
    ids = encode_prompts(tokenizer, prompts)
    limit = config.max_prompt_length
    long = [i for i, row in enumerate(ids) if len(row) > limit]
    if long and config.too_long == "error":
        raise UserError(
            f"{path}: {len(long)} of {len(ids)} prompts are longer than data.max_prompt_length = {limit} tokens "
            f"(row {long[0] + 1} has {len(ids[long[0]])}); raise the limit, or set data.too_long to drop or truncate"
        )
    empty = [i for i, row in enumerate(ids) if not row]
    if empty:
        raise UserError(f"{path}, row {empty[0] + 1}: the prompt has no tokens")
    keep = [i for i, row in enumerate(ids) if config.too_long != "drop" or len(row) <= limit]
    if not keep:
        raise UserError(f"{path}: every prompt is longer than data.max_prompt_length = {limit} tokens")
    others = {name: read_column(rows, name, path) for name in rows.column_names if name != "prompt"}
    return PromptSet(
        prompts=[prompts[i] for i in keep],
        ids=[_cut(ids[i], limit, tokenizer.bos_token_id) for i in keep],
        columns={name: [values[i] for i in keep] for name, values in others.items()},
        pad_id=pad_id,
    )


def load_prompts(tokenizer: Any, config: DataConfig, seed: int) -> tuple[PromptSet, PromptSet | None]:
    """Prompts to train on, and held-out ones (None where there are none)."""
    rows, held_out = split_rows(config, seed)
    filler, where = pad_id(tokenizer), config.eval_path or config.path
    prompts = prepare_prompts(tokenizer, rows, config, filler)
    return prompts, held_out and prepare_prompts(tokenizer, held_out, config, filler, where)


def make_prompts(tokenizer: Any, prompts: Sequence[Any], columns: dict[str, list[Any]] | None = None) -> Prompts:
    """Texts, lists of messages or lists of token ids as one batch; `UserError` where one is empty."""
    if not len(prompts):
        raise UserError("there are no prompts")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str | list) or not prompt:
            raise UserError(f"prompt {i} is {prompt!r}, but must be text, a list of messages or a list of token ids")
    given = {i: prompt for i, prompt in enumerate(prompts) if isinstance(prompt[0], int)}
    texts = [tokenizer.decode(prompt) if i in given else prompt for i, prompt in enumerate(prompts)]
    encoded = [given.get(i, ids) for i, ids in enumerate(encode_prompts(tokenizer, texts))]
    ids, mask = pad(encoded, pad_id(tokenizer), "left")
    return Prompts(ids, mask, texts, columns or {})


def pad_id(tokenizer: Any) -> int:
    """An id to fill places that every mask hides; which one makes no difference, so any tokenizer has one."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _cut(ids: list[int], limit: int, bos: int | None) -> list[int]:
    """The end of a prompt that is too long, behind its start token where it has one."""
    if len(ids) <= limit:
        return ids
    start = ids[:1] if ids[0] == bos and limit > 1 else []
    return start + ids[len(ids) - limit + len(start) :]
