"""The committed stubs are what proto/ generates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTOS = sorted(path.relative_to(ROOT / "proto") for path in (ROOT / "proto").rglob("*.proto"))
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    options = [f"--{kind}_out={out}" for kind in ("python", "grpc_python")]
    options += [f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto"), *options, *map(str, PROTOS)],
        check=True,
        env={**os.environ, "PATH": path},
    )
    return out


@pytest.mark.parametrize("proto", PROTOS, ids=str)
def test_stubs_are_fresh(generated: Path, proto: Path) -> None:
    for suffix in SUFFIXES:
        stub = proto.with_name(proto.stem + suffix)
        assert (ROOT / stub).read_text("utf-8") == (generated / stub).read_text("utf-8"), f"run make stubs: {stub}"


def test_no_stub_without_its_proto() -> None:
    committed = {path.relative_to(ROOT) for path in (ROOT / "appliance").rglob("*_pb2*.py*") if path.suffix != ".pyc"}
    expected = {proto.with_name(proto.stem + suffix) for proto in PROTOS for suffix in SUFFIXES}
    assert committed == expected
