"""The shards of scores as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from llava_tools.curate.score_log import embeddings_path, npy_header, read_log
from llava_tools.curate.scores import read_scores, shards_of
from llava_tools.errors import UserError
from llava_tools.whole_files import replacing


def merge(paths: Sequence[Path], out: Path, *, overwrite: bool = False) -> int:
    """Write the scores of several files into one, in the order of the rows; return their number.

    `curate ifd` goes on with the merged file as if it had written it alone.

    Raises UserError for files that do not belong together, or an OUT that exists.
    """
    files = shards_of(paths)
    taken = [path for path in (out, embeddings_path(out)) if path.exists()]
    if out in files or (taken and not overwrite):
        raise UserError(f"'{taken[0]}' exists.", "Name another file, or give --overwrite.")
    scores = read_scores(files)
    header = read_log(files[0])[0]
    if header is None:
        raise UserError(f"'{files[0]}' has no scores yet.", "Let `curate ifd` write some.")
    header["fingerprint"]["shard"] = "1/1"
    records = [scores.records[place] for place in sorted(scores.records)]
    vectors = [scores.embedding(record["row"]) for record in records if "embedding" in record]
    for number, record in enumerate(r for r in records if "embedding" in r):
        record["vector"] = number
        del record["embedding"]
    if scores.mode == "pre":
        with replacing(embeddings_path(out)) as file:
            file.write(npy_header(len(vectors), len(vectors[0]) if vectors else 0))
            file.writelines(vector.astype("<f4").tobytes() for vector in vectors)
    with replacing(out) as file:
        file.writelines(orjson.dumps(line) + b"\n" for line in (header, *records))
    return len(records)
