"""Deviation of recovered bodies, by hand; views of them; the command; every bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from samforge.core.errors import FidelityError, MeshError, SettingError, ShapeError
from samforge.draw import (
    Camera,
    colors_from_values,
    demo_figure,
    frame_of,
    mesh_view,
    overlay_mesh,
    turntable,
    write_gif,
)
from samforge.draw.mesh import vertex_normals
from samforge.measure import (
    BodyMesh,
    Regions,
    compare_meshes,
    mesh_from_file,
    regions_from_file,
    save_people,
)

PYRAMID = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]])
PYRAMID_FACES = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])


def keypoints(root: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Any:
    """Hips a decimetre to either side of the root, everything else zero."""
    points = np.zeros((70, 3))
    points[9], points[10] = np.add(root, (0.1, 0, 0)), np.add(root, (-0.1, 0, 0))
    return points


def body(vertices: Any, **more: Any) -> BodyMesh:
    return BodyMesh(vertices=np.asarray(vertices, np.float64), faces=PYRAMID_FACES, **more)


def test_root_relative_by_hand() -> None:
    moved = PYRAMID.copy()
    moved[1] += (0.003, 0, 0.004)  # 5 mm
    moved[3] += (0, 0.001, 0)  # 1 mm
    found = compare_meshes(body(PYRAMID, keypoints=keypoints()), body(moved, keypoints=keypoints()))
    figures = found.root_relative
    # 0, 5, 0 and 1 mm; the 95th of a hundred lies 0.85 of the way from 1 to 5.
    assert figures.mean == pytest.approx(1.5)
    assert figures.median == pytest.approx(0.5)
    assert figures.p95 == pytest.approx(1 + 0.85 * 4)
    assert figures.max == pytest.approx(5.0)
    assert (found.root, found.vertices, found.height_m) == ("hips", 4, 2.0)
    assert found.camera_space is None
    assert found.root_shift_mm is None


def test_placement_counts_in_the_camera_alone() -> None:
    one = body(PYRAMID, keypoints=keypoints(), cam_t=np.array([0.0, 0.0, 3.0]))
    shifted = PYRAMID + np.array((0.01, 0, 0))
    other = body(shifted, keypoints=keypoints((0.01, 0, 0)), cam_t=np.array([0.0, 0.0, 3.01]))
    found = compare_meshes(one, other)
    assert found.root_relative.max == pytest.approx(0, abs=1e-9)
    assert found.camera_space is not None
    assert found.camera_space.mean == pytest.approx(10 * np.sqrt(2))
    assert found.root_shift_mm == pytest.approx(10 * np.sqrt(2))


def test_the_root_without_keypoints_is_the_mean_in_both() -> None:
    one = body(PYRAMID, keypoints=keypoints())
    found = compare_meshes(one, body(PYRAMID + 0.5))
    assert found.root == "mean of the vertices"
    assert found.root_relative.max == pytest.approx(0, abs=1e-9)


def test_by_region_worst_first() -> None:
    moved = PYRAMID.copy()
    moved[1] += (0.002, 0, 0)
    moved[3] += (0.004, 0, 0)
    regions = Regions(labels=np.array([0, 0, 1, 2]), names=("torso", "arm", "leg", "tail"))
    found = compare_meshes(
        body(PYRAMID, keypoints=keypoints()), body(moved, keypoints=keypoints()), regions
    )
    assert [(one.region, one.vertices) for one in found.regions] == [
        ("leg", 1),
        ("torso", 2),
        ("arm", 1),
    ]
    assert found.regions[0].deviation.mean == pytest.approx(4.0)
    assert found.regions[1].deviation.mean == pytest.approx(1.0)
    assert found.regions[2].deviation.max == pytest.approx(0.0)


def test_another_topology_is_refused() -> None:
    with pytest.raises(MeshError, match="have 4 and 3 vertices: they are of different body models"):
        compare_meshes(body(PYRAMID), BodyMesh(vertices=PYRAMID[:3]))
    other = BodyMesh(vertices=PYRAMID, faces=PYRAMID_FACES[:, ::-1])
    with pytest.raises(MeshError, match="4 and 4 faces, and these are not the same"):
        compare_meshes(body(PYRAMID), other)
    with pytest.raises(MeshError, match="labels 3 vertices, and the meshes have 4"):
        compare_meshes(body(PYRAMID), body(PYRAMID), Regions(labels=np.zeros(3, int), names=("a",)))


def person(vertices: Any = PYRAMID, **more: Any) -> dict[str, Any]:
    """As upstream's estimator gives it, with what nobody here reads."""
    return {
        "pred_vertices": np.asarray(vertices, np.float32),
        "pred_cam_t": np.array([0.0, 0.0, 4.0], np.float32),
        "pred_keypoints_3d": keypoints().astype(np.float32),
        "focal_length": np.float32(900.0),
        "bbox": np.zeros(4),
        "mask": None,
        **more,
    }


def test_people_are_saved_and_read(tmp_path: Path) -> None:
    path = save_people(tmp_path / "people.npz", [person(), person(PYRAMID + 1)], PYRAMID_FACES)
    first, second = (mesh_from_file(path, person=index) for index in range(2))
    assert np.array_equal(first.vertices, PYRAMID)
    assert np.array_equal(second.vertices, PYRAMID + 1)
    assert second.focal_px == 900.0
    assert second.cam_t is not None
    assert second.cam_t.tolist() == [0, 0, 4]
    assert second.keypoints is not None
    assert second.keypoints.shape == (70, 3)
    assert np.array_equal(first.faces, PYRAMID_FACES)
    with pytest.raises(MeshError, match=r"has 2 person\(s\), numbered from 0; there is no 2"):
        mesh_from_file(path, person=2)


def test_a_file_of_vertices_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", pred_vertices=PYRAMID)
    found = mesh_from_file(tmp_path / "bare.npz")
    assert (found.faces, found.cam_t, found.keypoints, found.focal_px) == (None,) * 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pred_vertices": None}, "has no pred_vertices; it holds"),
        ({"pred_vertices": np.zeros((4, 2))}, r"pred_vertices in .* is \(4, 2\), not \(V, 3\)"),
        ({"pred_vertices": np.zeros((0, 3))}, r"is \(0, 3\), not \(V, 3\)"),
        ({"pred_vertices": np.zeros(3)}, "pred_vertices in .* has 1 axes, not 2"),
        ({"pred_vertices": np.full((4, 3), "x")}, "holds <U1, not numbers"),
        (
            {"pred_vertices": np.where(np.arange(12).reshape(4, 3) < 2, np.nan, 0)},
            "2 of 12 numbers of pred_vertices in .* are NaN or infinite",
        ),
        ({"pred_cam_t": np.array([np.inf, 0, 1])}, "1 of 3 numbers of pred_cam_t"),
        ({"pred_cam_t": np.zeros(2)}, r"pred_cam_t in .* is \(2,\), not \(3,\)"),
        ({"pred_keypoints_3d": np.zeros((5, 3))}, r"is \(5, 3\)\. SAM 3D Body gives \(70, 3\)"),
        ({"faces": np.zeros((2, 4), int)}, r"faces in .* are int64 \(2, 4\), not integers"),
        ({"faces": np.array([[0, 1, 4]])}, "faces in .* name vertices 0 to 4, and there are 4"),
    ],
)
def test_files_with_something_wrong(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    arrays: dict[str, Any] = {
        "pred_vertices": PYRAMID,
        "pred_cam_t": np.zeros(3),
        "pred_keypoints_3d": keypoints(),
        "faces": PYRAMID_FACES,
        **change,
    }
    path = tmp_path / "person.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(MeshError, match=named):
        mesh_from_file(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"nothing\.npz does not exist"):
        mesh_from_file(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(MeshError, match=r"cannot be read as \.npz without running code"):
        mesh_from_file(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", PYRAMID)
    with pytest.raises(MeshError, match="is a single array"):
        mesh_from_file(tmp_path / "one.npy")
    np.savez(tmp_path / "code.npz", pred_vertices=np.array([Path("x")], dtype=object))
    with pytest.raises(MeshError, match="without running code"):
        mesh_from_file(tmp_path / "code.npz")
    with pytest.raises(MeshError, match="There is nobody to save"):
        save_people(tmp_path / "x.npz", [], PYRAMID_FACES)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"labels": np.zeros(4, int)}, "it wants labels and names"),
        ({"labels": np.zeros(4), "names": np.array(["a"])}, "labels are integers"),
        ({"labels": np.array([0, 1]), "names": np.array(["a"])}, "has label 1 and only 1 names"),
    ],
)
def test_region_maps_with_something_wrong(
    tmp_path: Path, arrays: dict[str, Any], named: str
) -> None:
    np.savez(tmp_path / "regions.npz", **arrays)
    with pytest.raises(MeshError, match=named):
        regions_from_file(tmp_path / "regions.npz")


def test_normals_point_out_of_a_sphere() -> None:
    figure = demo_figure(12, 16)
    head = figure.labels == figure.names.index("head")
    normals = vertex_normals(figure.vertices, figure.faces)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    away = figure.vertices[head] - figure.vertices[head].mean(axis=0)
    assert ((normals[head] * away).sum(axis=1) > 0).all()


def test_the_figure_is_closed_and_labelled() -> None:
    figure = demo_figure(8, 9)
    assert len(figure.vertices) == 15 * (8 * 9 + 2)
    assert len(figure.faces) == 15 * 2 * 8 * 9
    # Closed: every edge belongs to two triangles, once in each direction.
    edges = np.concatenate([figure.faces[:, [i, (i + 1) % 3]] for i in range(3)])
    forth = {tuple(edge) for edge in edges.tolist()}
    assert len(forth) == len(edges)
    assert {(b, a) for a, b in forth} == forth
    assert set(figure.labels.tolist()) == set(range(len(figure.names)))
    lifted = demo_figure(8, 9, offsets={"left hand": (0.0, 0.0, 0.1)})
    moved = np.linalg.norm(lifted.vertices - figure.vertices, axis=1) > 1e-9
    assert set(figure.labels[moved].tolist()) == {figure.names.index("left hand")}


def test_a_view_shows_the_mesh_where_it_is() -> None:
    figure = demo_figure(12, 16)
    front = mesh_view(figure.vertices, figure.faces, size=200)
    drawn = (front != 255).any(axis=2)
    middle, reach = frame_of(figure.vertices)
    scale = 200 * 0.44 / reach
    x = 100 + (figure.vertices[:, 0] - middle[0]) * scale
    y = 100 + (figure.vertices[:, 1] - middle[1]) * scale
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert (rows[0], rows[-1]) == (pytest.approx(y.min(), abs=1.5), pytest.approx(y.max(), abs=1.5))
    assert (columns[0], columns[-1]) == (
        pytest.approx(x.min(), abs=1.5),
        pytest.approx(x.max(), abs=1.5),
    )


def test_turning_by_half_mirrors_the_outline() -> None:
    figure = demo_figure(12, 16)
    front, back = (
        (mesh_view(figure.vertices, figure.faces, size=120, yaw_degrees=yaw) != 255).any(axis=2)
        for yaw in (0.0, 180.0)
    )
    assert (front ^ back[:, ::-1]).mean() < 0.002
    side = (mesh_view(figure.vertices, figure.faces, size=120, yaw_degrees=90.0) != 255).any(axis=2)
    assert side.any(axis=0).sum() < 0.6 * front.any(axis=0).sum()


def test_an_overlay_lies_where_the_camera_sees_the_mesh() -> None:
    photo = np.full((90, 160, 3), 40, np.uint8)
    # A square of one metre, two metres away: 50 pixels at a focal length of 100.
    vertices = np.array([[-0.5, -0.5, 2], [0.5, -0.5, 2], [0.5, 0.5, 2], [-0.5, 0.5, 2]])
    camera = Camera(focal_px=100.0, centre_xy=(80.0, 45.0))
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    drawn = overlay_mesh(photo, vertices, faces, camera, opacity=1.0)
    changed = (drawn != 40).any(axis=2)
    assert changed.sum() == 50 * 50
    assert changed[20:70, 55:105].all()
    half = overlay_mesh(photo, vertices, faces, camera, opacity=0.5).astype(int)
    inside = np.s_[21:69, 56:104]
    assert np.abs(half[inside] - (40 + drawn[inside].astype(int)) / 2).max() <= 1
    with pytest.raises(SettingError, match="Nothing of the mesh is in the picture of 160 x 90"):
        overlay_mesh(photo, vertices - (0, 0, 4), faces, camera)
    with pytest.raises(SettingError, match="opacity is 2"):
        overlay_mesh(photo, vertices, faces, camera, opacity=2)


def test_colours_grow_darker_with_the_deviation() -> None:
    colors = colors_from_values(np.array([0.0, 5.0, 10.0, 99.0]), 10.0)
    assert colors.tolist() == [[205, 212, 220], [242, 142, 60], [126, 6, 48], [126, 6, 48]]


def test_views_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ShapeError, match=r"Vertices are \(V, 3\)"):
        mesh_view(np.zeros((3, 2)), PYRAMID_FACES)
    with pytest.raises(ShapeError, match="A vertex of the mesh is NaN"):
        mesh_view(np.full((4, 3), np.nan), PYRAMID_FACES)
    with pytest.raises(ShapeError, match="one a vertex"):
        mesh_view(PYRAMID, PYRAMID_FACES, colors=np.zeros((3, 3), np.uint8))
    with pytest.raises(SettingError, match="at least 2 frames"):
        turntable(PYRAMID, PYRAMID_FACES, frames=1)
    with pytest.raises(ShapeError, match="pictures of one size"):
        write_gif("x.gif", [])


def test_the_turn_as_a_gif(tmp_path: Path) -> None:
    frames = turntable(PYRAMID, PYRAMID_FACES, frames=6, size=48)
    with Image.open(write_gif(tmp_path / "turn.gif", frames)) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (6, (48, 48), 0)  # type: ignore[attr-defined]
        gif.seek(3)
        shown = np.asarray(gif.convert("RGB"), int)
    assert np.abs(shown - frames[3]).mean() < 2


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A figure, and the same one with its left hand moved by 2 cm and the camera by 1 cm."""
    paths = []
    for name, lift, near in (("a", 0.0, 3.0), ("b", 0.02, 3.01)):
        figure = demo_figure(8, 9, offsets={"left hand": (lift, 0.0, 0.0)})
        saved = person(
            figure.vertices,
            pred_keypoints_3d=figure.keypoints,
            pred_cam_t=np.array([0.0, 0.0, near]),
            focal_length=200.0,
        )
        paths.append(save_people(tmp_path / f"{name}.npz", [saved], figure.faces))
    figure = demo_figure(8, 9)
    np.savez(tmp_path / "regions.npz", labels=figure.labels, names=np.array(figure.names))
    Image.new("RGB", (160, 120), (60, 80, 60)).save(tmp_path / "photo.png")
    return paths[0], paths[1]


def run(*words: Any) -> Any:
    from samforge.apps.cli.mesh_compare import mesh_compare

    app = typer.Typer()
    app.command()(mesh_compare)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(
        *pair,
        *("--regions", tmp_path / "regions.npz", "--image", tmp_path / "photo.png"),
        *("--out", tmp_path / "views"),
    )
    assert done.exit_code == 0, done.output
    assert "Aligned by the hips" in done.output
    assert "The roots are 10.0 mm apart in the camera's frame." in done.output
    rows = done.output.split("By region")[1].splitlines()
    assert "left hand" in next(row for row in rows if "74" in row)
    for name in ("views.png", "overlay.png", "turn.gif"):
        assert (tmp_path / "views" / name).stat().st_size > 1000
    with Image.open(tmp_path / "views" / "turn.gif") as gif:
        assert gif.n_frames == 24  # type: ignore[attr-defined]


def test_the_command_for_machines(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(*pair, "--json", "--limit-mm", 5)
    table = json.loads(done.stdout)
    found = table["comparison"]
    assert (table["command"], table["ok"], table["views"]) == ("mesh-compare", True, [])
    assert found["vertices"] == 15 * 74
    # The hand's end moved by 20 mm, and its round end turns with the axis.
    assert 20 < found["root_relative"]["max"] < 25
    assert 0 < found["root_relative"]["mean"] < 5
    assert found["camera_space"]["median"] == pytest.approx(10, abs=1e-6)


def test_above_the_limit_is_a_failure(pair: tuple[Path, Path]) -> None:
    done = run(*pair, "--limit-mm", 0.01)
    assert isinstance(done.exception, FidelityError)
    assert "above the limit of 0.01 mm" in str(done.exception)
    done = run(*pair, "--limit-mm", 0.01, "--json")
    assert done.exit_code == 7
    assert json.loads(done.stdout)["ok"] is False


def test_what_views_need(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(*pair, "--image", tmp_path / "photo.png")
    assert isinstance(done.exception, SettingError)
    for path in pair:
        np.savez(path, pred_vertices=mesh_from_file(path).vertices)
    done = run(*pair, "--out", tmp_path / "views")
    assert isinstance(done.exception, MeshError)
    assert "Neither file has faces" in str(done.exception)
    figure = demo_figure(8, 9)
    for path in pair:
        np.savez(path, pred_vertices=figure.vertices, faces=figure.faces)
    done = run(*pair, "--out", tmp_path / "views", "--image", tmp_path / "photo.png")
    assert "save pred_cam_t with both meshes" in str(done.exception)
