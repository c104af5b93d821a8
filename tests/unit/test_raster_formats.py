"""Files of objects on a map, read back by readers of these formats."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pyogrio.raw
import pytest
import shapely
from pyproj import CRS, Transformer

from samforge.core.errors import OutputError, SettingError
from samforge.core.outputs import is_own
from samforge.formats import GEO_SUFFIXES, GeoFeature, GeoLayer, geo_writer

UTM = CRS.from_epsg(32633).to_wkt()
SQUARE = shapely.box(400_000, 5_800_000, 400_010, 5_800_020)
HOLED = shapely.Polygon(
    [(400_100, 5_800_000), (400_140, 5_800_000), (400_140, 5_800_040), (400_100, 5_800_040)],
    [[(400_110, 5_800_010), (400_120, 5_800_010), (400_120, 5_800_020), (400_110, 5_800_020)]],
)
PARTS = shapely.MultiPolygon([shapely.box(400_200, 5_800_000, 400_210, 5_800_010), SQUARE])
GEOMETRIES = (SQUARE, HOLED, PARTS)
ABOUT = {"bundle": "ab12", "phrases": {"roof": 0.5}}


def features(geometries: tuple[Any, ...] = GEOMETRIES) -> list[GeoFeature]:
    return [
        GeoFeature(
            geometry=geometry,
            id=number,
            label="röd tak" if number == 2 else "roof",
            score=0.5 + number / 10,
            area=geometry.area,
            pixels=4 * geometry.area,
            windows=number,
            source="whole",
        )
        for number, geometry in enumerate(geometries, 1)
    ]


def written(path: Path, crs: str | None = UTM, count: int = 3) -> Path:
    writer = geo_writer(path, GeoLayer(name="raster", crs=crs, about=ABOUT))
    for feature in features()[:count]:
        writer.add([feature])
    return writer.finish({"failed_windows": [{"window": "3,4"}]})


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_gdal_reads_what_was_written(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"out{suffix}")
    info, _, geometries, columns = pyogrio.raw.read(path)
    table = dict(zip(info["fields"], columns, strict=True))
    assert table["label"].tolist() == ["roof", "röd tak", "roof"]
    assert table["score"].tolist() == pytest.approx([0.6, 0.7, 0.8])
    assert table["area"].tolist() == [200.0, 1500.0, 300.0]
    assert table["pixels"].tolist() == [800.0, 6000.0, 1200.0]
    assert table["windows"].tolist() == [1, 2, 3]
    assert table["object" if suffix == ".gpkg" else "id"].tolist() == [1, 2, 3]
    found = shapely.from_wkb(geometries)
    assert all(one.is_valid for one in found)
    expected = GEOMETRIES
    if suffix == ".geojson":
        assert info["crs"] == "EPSG:4326"
        way = Transformer.from_crs(32633, 4326, always_xy=True)
        expected = tuple(
            shapely.transform(one, lambda p: np.stack(way.transform(*p.T), 1)) for one in GEOMETRIES
        )
    else:
        assert info["crs"] == "EPSG:32633"
    for one, other in zip(found, expected, strict=True):
        assert one.symmetric_difference(other).area < 1e-4 * other.area


def test_geojson_is_what_rfc_7946_says(tmp_path: Path) -> None:
    whole = json.loads(written(tmp_path / "out.geojson").read_text(encoding="utf-8"))
    assert (whole["type"], len(whole["features"])) == ("FeatureCollection", 3)
    assert whole["info"]["bundle"] == "ab12"
    assert whole["report"] == {"failed_windows": [{"window": "3,4"}]}
    assert "crs" not in whole
    for feature in whole["features"]:
        geometry = shapely.geometry.shape(feature["geometry"])
        left, bottom, right, top = geometry.bounds
        assert (13 < left < right < 14, 52 < bottom < top < 53) == (True, True)
        for polygon in getattr(geometry, "geoms", [geometry]):
            assert polygon.exterior.is_ccw
            assert not any(ring.is_ccw for ring in polygon.interiors)


def test_geojson_of_a_picture_keeps_its_pixels(tmp_path: Path) -> None:
    whole = json.loads(written(tmp_path / "out.geojson", crs=None).read_text(encoding="utf-8"))
    assert whole["info"]["coordinates"] == "those of the raster"
    assert shapely.geometry.shape(whole["features"][0]["geometry"]).equals(SQUARE)


def test_geoparquet_is_what_its_specification_says(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path / "out.parquet"))
    geo = json.loads(table.schema.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon", "MultiPolygon"])
    assert CRS.from_json_dict(column["crs"]).equals(CRS.from_epsg(32633))
    assert column["bbox"] == [400_000, 5_800_000, 400_210, 5_800_040]
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    found = shapely.from_wkb(np.array(table["geometry"].to_pylist(), np.object_))
    assert [one.equals(other) for one, other in zip(found, GEOMETRIES, strict=True)] == [True] * 3
    boxes = [tuple(row.values()) for row in table["bbox"].to_pylist()]
    assert boxes == [one.bounds for one in GEOMETRIES]
    assert table["label"].to_pylist() == ["roof", "röd tak", "roof"]
    assert json.loads(table.schema.metadata[b"samforge raster"])["bundle"] == "ab12"


def test_geoparquet_of_no_reference_system_says_so(tmp_path: Path) -> None:
    """Without the key it would be longitude and latitude."""
    schema = pq.read_schema(written(tmp_path / "out.parquet", crs=None))
    assert json.loads(schema.metadata[b"geo"])["columns"]["geometry"]["crs"] is None


def test_a_geopackage_says_where_its_objects_are_from(tmp_path: Path) -> None:
    path = written(tmp_path / "out.gpkg")
    assert pyogrio.list_layers(path).tolist() == [["raster", "MultiPolygon"]]
    database = sqlite3.connect(path)
    ((text,),) = database.execute("SELECT description FROM gpkg_contents").fetchall()
    database.close()
    about = json.loads(text.removeprefix("samforge raster "))
    assert about == {**ABOUT, "report": {"failed_windows": [{"window": "3,4"}]}}


@pytest.mark.parametrize("suffix", GEO_SUFFIXES)
def test_nothing_found_is_a_file_with_its_columns(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"out{suffix}", count=0)
    if suffix == ".parquet":
        table = pq.read_table(path)
        assert table.num_rows == 0
        assert "bbox" not in json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]
        return
    info, _, geometries, _ = pyogrio.raw.read(path)
    assert len(geometries) == 0
    assert suffix == ".geojson" or info["fields"].tolist()[1:3] == ["label", "score"]


@pytest.mark.parametrize("suffix", GEO_SUFFIXES)
def test_files_appear_when_they_are_finished(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"earlier")
    writer = geo_writer(path, GeoLayer(name="raster", crs=None))
    writer.add(features())
    assert path.read_bytes() == b"earlier"
    writer.discard()
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize("suffix", GEO_SUFFIXES)
def test_own_files_are_known_again(tmp_path: Path, suffix: str) -> None:
    assert is_own(written(tmp_path / f"out{suffix}"))
    other = tmp_path / f"other{suffix}"
    if suffix == ".parquet":
        pq.write_table(pq.read_table(tmp_path / "out.parquet").replace_schema_metadata(), other)
    else:
        pyogrio.raw.write(
            other,
            geometry=np.array([SQUARE.wkb], np.object_),
            field_data=[np.array([1])],
            fields=np.array(["a"], np.object_),
            geometry_type="Polygon",
            crs="EPSG:4326",
        )
    assert not is_own(other)


@pytest.mark.parametrize("suffix", GEO_SUFFIXES)
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "missing" / f"out{suffix}"
    with pytest.raises(OutputError, match="missing"):
        geo_writer(path, GeoLayer(name="raster", crs=None))


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"\.gpkg, \.parquet, \.geojson, got out\.shp"):
        geo_writer(tmp_path / "out.shp", GeoLayer(name="raster", crs=None))
