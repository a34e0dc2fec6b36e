"""Preferences, demonstrations and prompts from files, in the columns that TRL and the hub use.

A record has one of these forms, each text plain or a conversation (a list of {"role", "content"}):

| form        | columns                      | meaning                                                           |
|-------------|------------------------------|-------------------------------------------------------------------|
| preference  | prompt, chosen, rejected     | without `prompt` it is the common beginning of the two            |
| completion  | prompt, completion           |                                                                   |
| messages    | messages                     | the last message, the assistant's, is the completion              |
| text        | text                         | the completion of an empty prompt                                 |
| prompt      | prompt                       |                                                                   |
| ranking     | prompt, ranked               | `ranked` lists K >= 2 texts, best first; `prompt` may be absent   |
| scored      | prompt, responses, scores    | K >= 2 texts, and a number (or a list of numbers) for each        |
| rewarded    | prompt, response_1, reward_1, response_2, reward_2                                               |
| judged      | prompt, chosen, rejected, score_chosen, score_rejected                                           |

Lines and records are counted from 1. An option named like a column says what the file calls it
(`?prompt=question&completion=answer`). Prompts keep every other column of their file, for purposes that name it.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from telos.core.errors import TelosError
from telos.data.extras import extra
from telos.data.options import Options
from telos.data.records import Demonstrations, Message, Preferences, Prompts, Rankings, Text
from telos.data.scored import ScoredTexts, numbers

FORMS: dict[str, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "prompt": ("prompt",),
    "ranking": ("ranked",),
    "scored": ("responses", "scores"),
    "rewarded": ("response_1", "response_2", "reward_1", "reward_2"),
    "judged": ("chosen", "rejected", "score_chosen", "score_rejected"),
}
"""The columns that each form must have."""

CHOICES: dict[type | None, tuple[str, ...]] = {
    None: ("preference", "completion", "messages", "text", "prompt"),
    Preferences: ("preference",),
    Demonstrations: ("completion", "messages", "text", "preference"),
    Prompts: ("preference", "prompt", "messages"),
    Rankings: ("ranking", "preference"),
    ScoredTexts: ("scored", "rewarded", "judged"),
}
"""The forms from which a record can be made, the preferred first."""

FIELDS = ("prompt", "chosen", "rejected", "completion", "messages", "text", "ranked")
SCORED = ("responses", "scores", "response_1", "response_2", "reward_1", "reward_2", "score_chosen", "score_rejected")
"""Fields that are read for ScoredTexts only; elsewhere they are columns like any other."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
# Files that tools write beside the data.
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")


class Place(NamedTuple):
    """Where a record stands, for messages."""

    file: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


Rows = Iterator[tuple[Place, Any]]


def json_lines(path: Path) -> Rows:
    """The objects of a .jsonl or .jsonl.gz, one a line; blank lines are skipped."""
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = Place(str(path), "line", number)
                    yield place, parse_json(line, place)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TelosError(
                f"{path} is damaged after line {number}", expected="a whole gzip file", got=str(error),
                fix="download or compress the file again",
            ) from error  # fmt: skip


def parse_json(data: bytes, place: Any) -> Any:
    """JSON in UTF-8."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise TelosError(
            f"{place} is not UTF-8", expected="UTF-8 text", got=f"byte 0x{data[error.start]:02x} at position "
            f"{error.start}", fix="save the file as UTF-8",
        ) from error  # fmt: skip
    except (json.JSONDecodeError, RecursionError) as error:
        raise TelosError(
            f"{place} is not JSON", expected="a JSON object", got=str(error), fix="mend or remove it"
        ) from error


def json_rows(path: Path) -> Rows:
    """The objects of a .json: a list of them, or one a line as in .jsonl."""
    data = path.read_bytes()
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"{":
        yield from json_lines(path)
        return
    rows = parse_json(data, path)
    if not isinstance(rows, list):
        raise TelosError(f"{path} holds a single value", expected="a list of objects", got=type(rows).__name__)
    for number, row in enumerate(rows, 1):
        yield Place(str(path), "record", number), row


class Wanted(NamedTuple):
    """Which columns of a table are read.

    Args:
        fields: what the file calls the columns of the forms.
        kind: the record class, None for the one that the columns suggest; prompts keep every column.
    """

    fields: Mapping[str, str]
    kind: type | None

    def among(self, names: Iterable[str]) -> list[str]:
        """Of the columns `names` those to read; all of them where none is known."""
        names = list(names)
        answers = {self.fields[name] for name in FIELDS if name != "prompt"}
        if self.kind is Prompts or (self.kind is None and not answers & set(names)):
            return names
        return [name for name in names if name in (*self.fields.values(), "label")] or names


def parquet_rows(path: Path, wanted: Wanted) -> Rows:
    """The rows of a .parquet, of the columns that are wanted."""
    with extra("lm", str(path)):
        import pyarrow as pa
        import pyarrow.parquet as pq
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=wanted.among(file.schema_arrow.names)):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(str(path), "record", number), row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise TelosError(
            f"{path} is damaged after record {number}", expected="a whole parquet file", got=str(error),
            fix="download or write the file again",
        ) from error  # fmt: skip


def dataset_rows(data: Any, name: str, wanted: Wanted) -> Rows:
    """The rows of a `datasets.Dataset`."""
    number = 0
    for table in data.select_columns(wanted.among(data.column_names)).with_format("arrow").iter(1000):
        for row in table.to_pylist():
            number += 1
            yield Place(name, "record", number), row


def file_rows(path: Path, wanted: Wanted) -> Rows:
    """The rows of one file, by its suffix."""
    if path.stat().st_size == 0:
        raise TelosError(f"{path} is empty", expected="at least one record")
    if path.suffix == ".parquet":
        yield from parquet_rows(path, wanted)
    elif path.suffix == ".json":
        yield from json_rows(path)
    else:
        yield from json_lines(path)


def saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote `folder`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def text_files(folder: Path) -> dict[str, list[Path]]:
    """The data files in `folder` or its subfolder data/, by split: the name without suffix and shard number."""
    splits: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
            if suffix and path.is_file() and path.name not in NOT_DATA and not path.name.startswith("."):
                split = re.sub(r"-\d+-of-\d+$", "", path.name[: -len(suffix)])
                splits.setdefault(split, []).append(path)
        if splits:
            return splits
    return splits


def chosen_split(splits: Iterable[Any], what: str, options: Options) -> str:
    """The split that the options name; else train, else the only one."""
    names = list(splits)
    split = options.values.get("split") or ("train" if "train" in names else names[0])
    if split not in names or ("split" not in options.values and split != "train" and len(names) > 1):
        raise TelosError(
            f"{what}: " + (f"no split '{split}'" if split not in names else "several splits and none is 'train'"),
            expected=f"split={' or split='.join(names)}", fix=f"name it: {what}?split={names[0]}",
        )  # fmt: skip
    return split


def folder_rows(folder: Path, options: Options, wanted: Wanted) -> Rows:
    """The rows of a folder that `datasets.save_to_disk` wrote, or of the files of one split."""
    if saved_dataset(folder):
        with extra("lm", str(folder)):
            import datasets
        try:
            data = datasets.load_from_disk(str(folder))
            if isinstance(data, datasets.DatasetDict):
                data = data[chosen_split(data, str(folder), options)]
            elif "split" in options.values:
                raise TelosError(f"{folder} has no splits", got=f"split={options.values['split']}", fix="leave it out")
            yield from dataset_rows(data, str(folder), wanted)
        except (TelosError, PermissionError):
            raise
        # The library raises what its readers of JSON, Arrow and files raise.
        except Exception as error:
            raise TelosError(
                f"{folder} cannot be read", expected="what datasets.save_to_disk wrote",
                got=f"{type(error).__name__}: {error}", fix="save the data set again",
            ) from error  # fmt: skip
        return
    splits = text_files(folder)
    for path in splits[chosen_split(splits, str(folder), options)]:
        yield from file_rows(path, wanted)


def hub_rows(name: str, options: Options, wanted: Wanted) -> Rows:
    """The rows of the hub's data set `name`, downloaded by the `datasets` library unless it is in its cache."""
    with extra("lm", f"data set '{name}'"):
        import datasets
    try:
        data = datasets.load_dataset(name, options.values.get("config"))
    # The library raises what the network, its cache and its readers raise.
    except Exception as error:
        raise TelosError(
            f"'{name}' is no file or folder here, and the hub gave no data set of that name",
            expected="an existing path, or a data set that can be downloaded or is in the cache",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="check the path; without a network download the data set elsewhere and give its folder",
        ) from error  # fmt: skip
    yield from dataset_rows(data[chosen_split(data, name, options)], name, wanted)


def load_text(
    what: str | Path, kind: type | None, options: Options
) -> Preferences | Demonstrations | Prompts | Rankings | ScoredTexts:
    """Reads the records in `what`, a file, a folder or a hub name (str), as the record class `kind`."""
    hub = isinstance(what, str)
    fields = FIELDS + SCORED if kind is ScoredTexts else FIELDS
    options.only(*(("split",) if hub or what.is_dir() else ()), *(("config",) if hub else ()), *fields)
    names = {name: options.values.get(name, name) for name in fields}
    wanted = Wanted(names, kind)
    if isinstance(what, str):
        rows = hub_rows(what, options, wanted)
    elif what.is_dir():
        rows = folder_rows(what, options, wanted)
    else:
        rows = file_rows(what, wanted)
    prompts: list[Text | None] = []
    first: list[Any] = []
    second: list[Any] = []
    others: list[dict[str, Any]] = []
    form, explicit, needed = "", False, ()
    for place, row in rows:
        if not isinstance(row, dict):
            raise TelosError(f"{place} is not an object", expected="an object with named fields", got=shown(row))
        if not form:
            form = form_of(row, kind, names, place)
            explicit = names["prompt"] in row
            may_lack_prompt = form in CHOICES[Rankings] + CHOICES[ScoredTexts]
            needed = FORMS[form] + (("prompt",) if explicit and may_lack_prompt else ())
        reader = Reader(row, place, names)
        for name in needed:
            if names[name] not in row:
                raise reader.missing(name)
        prompt, one, other = READERS[form](reader, explicit)
        if prompts and plain(one) != plain(first[0]):
            raise mixed(place, "the records before it and this one")
        if kind is Prompts or form == "prompt":
            check_prompt(prompt, place)
            used = {names[name] for name in (*FORMS[form], "prompt")}
            others.append({name: value for name, value in row.items() if name not in used})
        prompts.append(prompt)
        first.append(one)
        second.append(other)
    if not prompts:
        raise TelosError(f"{what} has no records", expected="at least one")
    origin = options.origin(what)
    if kind is Prompts or form == "prompt":
        # A record may lack a column; a table would fill it with null.
        extra_names = dict.fromkeys(name for row in others for name in row)
        columns = {name: [row.get(name) for row in others] for name in extra_names}
        return Prompts([prompt for prompt in prompts if prompt is not None], origin, columns)
    if kind is ScoredTexts:
        return ScoredTexts(prompts, first, second, origin)
    if kind is Rankings:
        return Rankings(prompts, first if form == "ranking" else list(zip(first, second, strict=True)), origin)
    if form == "preference" and kind is not Demonstrations:
        return Preferences(prompts, first, second, origin)
    return Demonstrations(["" if prompt is None else prompt for prompt in prompts], first, origin)


def form_of(row: Mapping[str, Any], kind: type | None, names: Mapping[str, str], place: Place) -> str:
    """The first form that `kind` can be made from and whose columns are there.

    Raises:
        TelosError: naming the column that is missing from the form which comes nearest.
    """
    choices = CHOICES[kind]
    for form in choices:
        if all(names[name] in row for name in FORMS[form]):
            return form
    present = {form: sum(names[name] in row for name in FORMS[form]) for form in choices}
    nearest = max(choices, key=lambda form: (present[form], kind is Prompts and form == "prompt"))
    missing = next(name for name in FORMS[nearest] if names[name] not in row)
    raise TelosError(
        f"{place}: column '{names[missing]}' is missing",
        expected=" or ".join(" + ".join(names[name] for name in FORMS[form]) for form in choices),
        got=", ".join(row) or "no columns",
        fix=f"rename the columns, or say what they are called: ?{'&'.join(f'{n}=COLUMN' for n in FORMS[nearest])}",
    )


class Reader:
    """One record: its fields as checked texts."""

    def __init__(self, row: Mapping[str, Any], place: Place, names: Mapping[str, str]):
        self.row, self.place, self.names = row, place, names

    def missing(self, field: str) -> TelosError:
        """The error for a record that lacks what the first record has."""
        return TelosError(
            f"{self.place}: column '{self.names[field]}' is missing", expected="the same columns in every record",
            got=", ".join(self.row) or "none", fix="add it, or remove the record",
        )  # fmt: skip

    def text(self, field: str, empty: bool = False) -> Text:
        """The field as a text or a conversation; `empty` allows the empty text."""
        name, value = self.names[field], self.row[self.names[field]]
        where = f"{self.place}, field '{name}'"
        if isinstance(value, str):
            if not empty and not value.strip():
                raise TelosError(f"{where} is empty", expected="a text", got=shown(value), fix="remove the record")
            check_unicode(value, where)
            return value
        if isinstance(value, list):
            if not value:
                raise TelosError(f"{where} is empty", expected="at least one message", fix="remove the record")
            return [message_of(message, f"{where}, message {i}") for i, message in enumerate(value, 1)]
        raise TelosError(
            f"{where} has the wrong type", expected="a text, or a list of messages", got=shown(value),
            fix="mend or remove the record",
        )  # fmt: skip

    def conversation(self, field: str) -> list[Message]:
        """The field as messages."""
        value = self.text(field)
        if isinstance(value, str):
            raise TelosError(
                f"{self.place}, field '{self.names[field]}' is a plain text", expected="a list of messages",
                got=shown(value), fix="give plain texts in the column 'text'",
            )  # fmt: skip
        return value


def read_preference(reader: Reader, explicit: bool) -> tuple[Text | None, Text, Text]:
    """Prompt (None if implicit in plain texts), chosen, rejected."""
    chosen, rejected = reader.text("chosen"), reader.text("rejected")
    prompt = reader.text("prompt", empty=True) if explicit else None
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise mixed(reader.place, "'chosen' and 'rejected'")
    if isinstance(chosen, str) or isinstance(rejected, str):
        if prompt is not None and not isinstance(prompt, str):
            raise mixed(reader.place, "'prompt' and 'chosen'")
        return prompt, chosen, rejected
    # Some sets of the hub repeat the first message as a plain prompt beside whole conversations.
    if isinstance(prompt, str) and prompt.strip() != str(chosen[0].get("content")).strip():
        raise mixed(reader.place, "'prompt' and 'chosen'")
    if prompt is not None and not isinstance(prompt, str):
        return prompt, chosen, rejected
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise TelosError(
            f"{reader.place}: 'chosen' and 'rejected' have no leading message in common",
            expected="conversations that begin with the same prompt, or a column 'prompt'", got=shown(rejected[0]),
            fix="add the column 'prompt', or remove the record",
        )  # fmt: skip
    return chosen[:shared], chosen[shared:], rejected[shared:]


def read_completion(reader: Reader, explicit: bool) -> tuple[Text, Text, Text]:
    """Prompt and completion."""
    if isinstance(reader.row.get("label"), bool):
        raise TelosError(
            f"{reader.place}, field 'label': unpaired preferences are not demonstrations",
            expected="completions that are all worth imitating", got=shown(reader.row["label"]),
            fix="keep the records with label true, without the column",
        )  # fmt: skip
    prompt, completion = reader.text("prompt", empty=True), reader.text("completion")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise mixed(reader.place, "'prompt' and 'completion'")
    return prompt, completion, ""


def read_messages(reader: Reader, explicit: bool) -> tuple[Text, Text, Text]:
    """All messages but the last, and the last, which must be the assistant's."""
    messages = reader.conversation("messages")
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise TelosError(
            f"{reader.place}, field '{reader.names['messages']}': nothing to imitate",
            expected="a prompt and a last message of role 'assistant'",
            got=f"{len(messages)} messages, the last of role '{messages[-1]['role']}'", fix="mend or remove the record",
        )  # fmt: skip
    return messages[:-1], messages[-1:], ""


def read_text(reader: Reader, explicit: bool) -> tuple[Text, Text, Text]:
    """An empty prompt and the text."""
    text = reader.text("text")
    if not isinstance(text, str):
        raise TelosError(
            f"{reader.place}, field '{reader.names['text']}' is a conversation", expected="a plain text",
            got=shown(text), fix="give conversations in the column 'messages'",
        )  # fmt: skip
    return "", text, ""


def read_prompt(reader: Reader, explicit: bool) -> tuple[Text, Text, Text]:
    """A prompt; it stands where a completion would, so that plain and conversational are told apart."""
    prompt = reader.text("prompt")
    return prompt, prompt, ""


def read_ranking(reader: Reader, explicit: bool) -> tuple[Text | None, tuple[Text, ...], Text]:
    """Prompt (None if implicit in plain texts) and the ranked texts, best first."""
    values = reader.row[reader.names["ranked"]]
    where = f"{reader.place}, field '{reader.names['ranked']}'"
    if not isinstance(values, list) or len(values) < 2:
        raise TelosError(f"{where} is no ranking", expected="a list of two or more texts", got=shown(values))
    texts = tuple(Reader({"ranked": v}, reader.place, {"ranked": "ranked"}).text("ranked") for v in values)
    if len({isinstance(text, str) for text in texts}) > 1:
        raise mixed(reader.place, "the ranked texts")
    prompt = reader.text("prompt", empty=True) if explicit else None
    if prompt is None and not isinstance(texts[0], str):
        raise reader.missing("prompt")
    if prompt is not None and isinstance(prompt, str) != isinstance(texts[0], str):
        raise mixed(reader.place, "'prompt' and the ranked texts")
    return prompt, texts, ""


def read_scored(reader: Reader, explicit: bool) -> tuple[Text | None, tuple[Text, ...], tuple[Any, ...]]:
    """Prompt, the texts, and their scores."""
    names = {**reader.names, "ranked": reader.names["responses"]}
    prompt, texts, _ = read_ranking(Reader(reader.row, reader.place, names), explicit)
    values = reader.row[reader.names["scores"]]
    if not isinstance(values, list) or len(values) != len(texts):
        raise TelosError(
            f"{reader.place}, field '{reader.names['scores']}' does not fit the texts",
            expected=f"a list of {len(texts)} scores", got=shown(values), fix="mend or remove the record",
        )  # fmt: skip
    return prompt, texts, tuple(read_score(reader, "scores", value) for value in values)


def read_score(reader: Reader, field: str, value: Any) -> Any:
    """A finite number or a tuple of them."""
    found = numbers(value)
    if found is None:
        raise TelosError(
            f"{reader.place}, field '{reader.names[field]}' holds no score", expected="a finite number, or a list",
            got=shown(value), fix="mend or remove the record",
        )  # fmt: skip
    return found if isinstance(value, list) else found[0]


def read_two(first: str, second: str, *scores: str) -> Callable[..., tuple[Text | None, Any, Any]]:
    """A reader of two texts and their scores, each in a column of its own."""

    def read(reader: Reader, explicit: bool) -> tuple[Text | None, Any, Any]:
        names = {**reader.names, "chosen": reader.names[first], "rejected": reader.names[second]}
        prompt, one, other = read_preference(Reader(reader.row, reader.place, names), explicit)
        values = tuple(read_score(reader, name, reader.row[reader.names[name]]) for name in scores)
        return prompt, (one, other), values

    return read


def plain(value: Text | tuple[Text, ...]) -> bool:
    """Whether a text, or the first of several, is a plain one."""
    return isinstance(value[0] if isinstance(value, tuple) else value, str)


READERS: dict[str, Callable[[Reader, bool], tuple[Text | None, Any, Any]]] = {
    "scored": read_scored,
    "rewarded": read_two("response_1", "response_2", "reward_1", "reward_2"),
    "judged": read_two("chosen", "rejected", "score_chosen", "score_rejected"),
    "ranking": read_ranking,
    "preference": read_preference,
    "completion": read_completion,
    "messages": read_messages,
    "text": read_text,
    "prompt": read_prompt,
}


def check_prompt(prompt: Text | None, place: Place) -> None:
    """Raises TelosError where a prompt is needed and there is none."""
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise TelosError(
            f"{place}: no prompt", expected="a prompt that is not empty",
            got="implicit in 'chosen' and 'rejected'" if prompt is None else "an empty one",
            fix="add the column 'prompt'",
        )  # fmt: skip


def message_of(message: Any, where: str) -> Message:
    """A message as {"role", "content", ...}; fields that a table fills with null are left out."""
    if not isinstance(message, dict):
        raise TelosError(f"{where} is not a message", expected='{"role", "content"}', got=shown(message))
    kept = {name: value for name, value in message.items() if value is not None or name == "content"}
    for name in ("role", "content"):
        value = kept.get(name)
        if name == "content" and value is None and "tool_calls" in kept:
            kept["content"] = ""
        elif not isinstance(value, str) or (name == "role" and not value):
            raise TelosError(
                f"{where} has no '{name}'" if value is None else f"{where}: '{name}' has the wrong type",
                expected='{"role": "user" or "assistant", "content": text}', got=shown(message),
                fix="rename 'from' to 'role' and 'value' to 'content'" if "from" in message else "mend the record",
            )  # fmt: skip
        else:
            check_unicode(value, where)
    return kept


def check_unicode(text: str, where: str) -> None:
    """Raises TelosError for lone surrogates: JSON can hold them, no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TelosError(
            f"{where} is not valid Unicode", expected="text without lone surrogates",
            got=ascii(text[error.start : error.end]), fix="mend or remove the record",
        ) from error  # fmt: skip


def mixed(place: Place, what: str) -> TelosError:
    """The error for plain texts beside conversations."""
    return TelosError(
        f"{place}: {what} are plain in one and conversational in the other", expected="one kind in the whole file",
        fix="turn the plain ones into lists of messages",
    )  # fmt: skip


def shown(value: Any) -> str:
    """A value in a message, cut to 80 characters."""
    text = "null" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."
