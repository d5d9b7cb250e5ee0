"""The image and the composition: linted; built and run by podman where the slow tests run.

podman takes the Dockerfile as it is, but its base image is Debian's minimal system, made by
debootstrap: no registry of images is asked.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from live import free_port, wait_for
from ops import ROOT, tool
from patience import eventually

DOCKER = ROOT / "docker"
DOCKERFILE = DOCKER / "Dockerfile"
BASE = "docker.io/library/debian:12-slim"
IMAGE = "localhost/specdec-test"


def linter(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def checked(*command: str | Path, seconds: float = 600, **arguments: Any) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds, **arguments
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_dockerfile_is_linted() -> None:
    checked(linter("hadolint"), DOCKERFILE)


def test_the_composition_is_linted() -> None:
    """As it lies for everybody: below /root the linter takes its own folders for the system's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        copy = shutil.copytree(DOCKER, Path(folder) / "docker")
        checked(linter("compose-lint"), copy / "compose.yaml", copy / "compose.gpu.yaml")


def test_every_image_is_pinned() -> None:
    text = DOCKERFILE.read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", text, re.MULTILINE))
    images = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - stages - {"${ACCELERATOR}"}
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    images |= {services[name]["image"] for name in ("prometheus", "grafana")}
    assert len(images) == 4
    assert all(re.fullmatch(r"[\w/-]+:v?\d[\w.-]+", image) for image in images)
    assert BASE.removeprefix("docker.io/library/") in images


def test_what_the_image_copies_is_not_ignored() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_composition_lets_requests_finish() -> None:
    server = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["server"]
    assert int(server["stop_grace_period"].removesuffix("s")) > 30 + 5
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]


def limits() -> list[str]:
    """podman asks for more than a machine may give: this is enough, and no more than is allowed."""
    enough = 4096
    names = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    hard = {name: resource.getrlimit(which)[1] for name, which in names.items()}
    most = {
        name: enough if limit == resource.RLIM_INFINITY else min(limit, enough)
        for name, limit in hard.items()
    }
    return [f"--ulimit={name}={limit}:{limit}" for name, limit in most.items()]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> str:
    """podman, with the image built."""
    program = tool("podman")
    if os.getuid():
        pytest.skip("debootstrap needs root")
    scratch = tmp_path_factory.mktemp("image")
    if subprocess.run([program, "image", "exists", BASE], check=False).returncode:
        system, archive = scratch / "system", scratch / "system.tar"
        checked(tool("debootstrap"), "--variant=minbase", "bookworm", system, seconds=900)
        checked("tar", "--create", "--file", archive, "--directory", system, ".")
        checked(program, "import", archive, BASE)
        shutil.rmtree(system)
        archive.unlink()
    # pip finds its packages there as it does here
    here = ["--build-arg=TORCH_INDEX="]
    links, certificates = os.environ.get("PIP_FIND_LINKS"), os.environ.get("PIP_CERT")
    if links and Path(links).is_dir():
        here += [f"--volume={links}:{links}:ro", f"--env=PIP_FIND_LINKS={links}"]
    if certificates:
        inside = "/run/certificates.pem"
        here += [f"--volume={certificates}:{inside}:ro", f"--env=PIP_CERT={inside}"]
    limit = limits()[0]
    build = [program, "build", "--isolation=chroot", "--network=host", "--pull=never", "--layers"]
    build += [limit, "--format=docker", "--build-arg=ACCELERATOR=cpu", *here]
    build += [f"--file={DOCKERFILE}", f"--tag={IMAGE}", str(ROOT)]
    checked(*build, seconds=3000, env={**os.environ, "TMPDIR": "/var/tmp"})
    return program


@pytest.fixture
def container(podman: str) -> Iterator[tuple[str, str, str]]:
    """(podman, the container's name, its URL): read-only, unprivileged, without capabilities."""
    name, port = f"specdec-test-{os.getpid()}", free_port()
    url = f"http://127.0.0.1:{port}"
    run = [podman, "run", "--detach", f"--name={name}", "--runtime=runc", "--network=host"]
    run += [*limits(), "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", "--cap-drop=ALL"]
    run += ["--security-opt=no-new-privileges", f"--env=SPECDEC_PORT={port}"]

    def alive() -> bool:
        return checked(podman, "inspect", "--format={{.State.Running}}", name).strip() == "true"

    try:
        checked(*run, IMAGE, "--max-batch", "2", "--drain-seconds", "240")
        wait_for(url, alive=alive)
        yield podman, name, url
    finally:
        subprocess.run([podman, "rm", "--force", "--volumes", name], check=False)


@pytest.mark.slow
def test_it_says_what_it_is(podman: str) -> None:
    (image,) = json.loads(checked(podman, "inspect", IMAGE))
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["python", "-m", "server"]
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert image["Healthcheck"]["Test"] == ["CMD", "python", "-m", "server.probe"]
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    assert {"title", "description", "version", "revision"} <= labels


@pytest.mark.slow
def test_it_runs_unprivileged_on_a_read_only_root(container: tuple[str, str, str]) -> None:
    podman, name, url = container
    assert checked(podman, "exec", name, "id", "-u").strip() == "10001"
    touch = subprocess.run([podman, "exec", name, "touch", "/srv/x"], check=False)
    assert touch.returncode != 0
    answer = httpx.post(f"{url}/generate", json={"prompt": "def ", "max_tokens": 8})
    assert answer.json()["usage"]["completion_tokens"] == 8
    # the core was there already, or could be compiled
    kept = checked(podman, "exec", name, "ls", "/var/cache/specdec")
    assert re.search(r"specdec-\w+\.so", kept)
    checked(podman, "exec", name, "python", "-m", "server.probe")
    # and what Triton needs to compile its kernels, which the image for GPUs has from the same base
    lacks = "from specdec.build import _missing_for_triton as f; print(f())"
    assert checked(podman, "exec", name, "python", "-c", lacks).strip() == ""
    write = 'mkdir "$TRITON_CACHE_DIR" && touch "$TRITON_CACHE_DIR/x"'
    checked(podman, "exec", name, "sh", "-c", write)
    logged = subprocess.run([podman, "logs", name], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in logged.stderr.splitlines()]
    assert [r["output_bytes"] for r in records if r["message"] == "request"] == [8]


@pytest.mark.slow
def test_it_finishes_what_it_has_begun(container: tuple[str, str, str]) -> None:
    podman, name, url = container
    body = {"prompt": "def ", "max_tokens": 2000, "ignore_eos": True, "mode": "base"}
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/generate", json=body))

    asking = threading.Thread(target=ask)
    asking.start()
    runs = 'num_requests_running{model_name="default"} 1.0'
    eventually(lambda: runs in httpx.get(f"{url}/metrics").text or not asking.is_alive())
    assert asking.is_alive()
    checked(podman, "stop", "--time=300", name)
    asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 2000
    assert checked(podman, "inspect", "--format={{.State.ExitCode}}", name).strip() == "0"
