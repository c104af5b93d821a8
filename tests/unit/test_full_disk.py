"""A disk that fills up at any moment: one of our errors, what was done is kept, a run goes on.

Child processes may write files of so many bytes and no more: to the programs it is a full disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.formats import LABEL_FORMATS
from samforge.labelling.ledger import NAME

_LIMITED = """
import json, resource, sys
sys.path[:0] = json.loads(sys.argv[1])
from samforge.core.errors import SamforgeError
{work}
limits = [None if one == "none" else int(one) for one in sys.argv[2].split(",")]
warm()
for limit in limits:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))
    try:
        print(json.dumps(["ended", run(sys.argv[3:], limit)]), flush=True)
    except SamforgeError as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
"""

_LABEL = """
from samforge.labelling import LabelSettings, Ontology, label
from samforge.formats import LABEL_FORMATS
def warm(): pass
def run(words, limit):
    ontology = Ontology.from_texts(["circle", "star"], threshold=0.2)
    formats = LabelSettings(formats=tuple(LABEL_FORMATS))
    result = label(words[0], words[1], ontology, words[2], settings=formats)
    return [result.pictures, result.resumed, result.labelled]
"""

_RASTER = """
from pathlib import Path
import numpy as np, samforge
from raster_oracle import oracle_of, plan_of
def warm(): pass
def run(words, limit):
    numbers = np.load(words[0])
    outs = tuple(Path(words[2]) / f"out{end}" for end in (".geojson", ".gpkg", ".parquet"))
    preview = Path(words[2]) / "seen.png"
    plan = plan_of(Path(words[1]), outs=outs, preview=preview, coarse=False)
    result = samforge.segment_raster(oracle_of(numbers), plan)
    return [result.windows, result.resumed, result.objects]
"""


def told(work: str, limits: str, *words: object) -> list[tuple[str, object]]:
    """What a child says of each limit in turn; it must not die of any."""
    said = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c", _LIMITED.format(work=work)),
            *(json.dumps(sys.path), limits, *map(str, words)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr
    return [(kind, what) for kind, what in map(json.loads, said.stdout.splitlines())]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_labels(
    fake_bundle: Callable[..., samforge.Bundle],
    tmp_path: Path,
    snapshot: Callable[[Path], dict[str, bytes]],
) -> None:
    bundle, source, out = fake_bundle("small"), tmp_path / "pictures", tmp_path / "out"
    source.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(noise).save(source / f"{number}.png")
    (whole,) = told(_LABEL, "none", bundle.root, source, tmp_path / "whole")
    assert whole == ("ended", [6, 0, 6])
    sizes = [path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    steps = sorted({1000, 20_000, *range(33_000, max(sizes), max(sizes) // 12)})
    limits = ",".join([*map(str, steps), "none"])
    *short, last = told(_LABEL, limits, bundle.root, source, out)
    kinds = [kind for kind, _ in short]
    assert set(kinds) == {"OutputError"}
    assert all(str(out) in str(what) for _, what in short)
    assert last[0] == "ended"
    pictures, resumed, labelled = last[1]  # type: ignore[misc]
    assert (pictures, resumed + labelled) == (6, 6)
    assert resumed > 0  # what one of the short runs had labelled was kept

    def files(folder: Path) -> dict[str, bytes]:
        return {name: data for name, data in snapshot(folder).items() if NAME not in name}

    assert files(out) == files(tmp_path / "whole")
    assert left(out) == []


def test_rasters(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    from raster_oracle import scene, write_numbers

    numbers, out = np.kron(scene(), np.ones((2, 2), np.int64)), tmp_path / "out"
    out.mkdir()
    raster = write_numbers(tmp_path / "in.tif", numbers)
    np.save(tmp_path / "numbers.npy", numbers)
    (tmp_path / "whole").mkdir()
    words = (tmp_path / "numbers.npy", raster)
    (whole,) = told(_RASTER, "none", *words, tmp_path / "whole")
    windows, _, objects = whole[1]  # type: ignore[misc]
    sizes = [path.stat().st_size for path in (tmp_path / "whole").iterdir()]
    steps = sorted({500, 5000, 20_000, *range(30_000, max(sizes), max(sizes) // 8)})
    *short, last = told(_RASTER, ",".join([*map(str, steps), "none"]), *words, out)
    assert {kind for kind, _ in short} == {"OutputError"}
    assert last[0] == "ended"
    assert last[1][0] == windows  # type: ignore[index]
    assert last[1][1] > 0  # type: ignore[index]
    assert last[1][2] == objects  # type: ignore[index]
    assert sorted(path.name for path in out.iterdir()) == [
        "out.geojson", "out.gpkg", "out.parquet", "seen.png",
    ]  # fmt: skip
    for name in ("out.geojson", "out.parquet", "seen.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_every_format_gives_up_clean(name: str, tmp_path: Path) -> None:
    work = f"""
from pathlib import Path
import numpy as np
from samforge.formats import DataSet, LabelledObject, LabelledPicture, label_writer
import io
from PIL import Image
file = io.BytesIO()
Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(file, "PNG")
mask = np.random.default_rng(0).random((1, 60, 60)) < 0.5
def warm(): pass
def run(words, limit):
    from pycocotools import mask as coco
    counts = coco.encode(np.asfortranarray(mask[0].astype(np.uint8)))["counts"].decode()
    data = DataSet(categories=("a",), provenance={{}}, picture=lambda name: file.getvalue())
    writer = label_writer({name!r}, Path(words[0]), data)
    try:
        for number in range(3):
            one = LabelledObject(category=0, phrase="a", score=0.5, bbox=(0, 0, 60, 60),
                                 area=int(mask.sum()), counts=counts)
            writer.add(LabelledPicture(id=number + 1, name=f"{{number}}.png", uri="", sha256="",
                                       size_hw=(60, 60), objects=(one,), best_scores={{}}))
        writer.finish()
    except BaseException:
        writer.discard()
        raise
"""
    out = tmp_path / "out"
    out.mkdir()
    ((first, _), (second, _)) = told(work, "600,none", out)
    assert (first, second) == ("OutputError", "ended")
    assert [path.name for path in out.iterdir()] == [LABEL_FORMATS[name]]
