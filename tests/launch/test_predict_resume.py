"""tl predict is killed at any moment, started again, and ends with the same bytes."""

import os
import random
import shutil
import signal
import time

import pytest
from gloo_workers import fork_server, free_port

from launch import predict

from .conftest import call_main_with_one_thread, write_image

IMAGES = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    targets = [write_image(root / f"{i}.png", i) for i in range(10)]
    targets[3].write_bytes(b"no image")
    for i in range(10, IMAGES):
        os.link(targets[i % 10], root / f"{i}.png")
    return root


def words(run_folder, images, place):
    return [
        "predict", run_folder, images, "--output", place / "p.csv", "--batch-size", 1,
        "--workers", 0, "--features", place / "f.npy", "--bad-images", "row",
    ]  # fmt: skip


def command(rank, world_size, port, arguments):
    """One process of a prediction, as a launcher would start it."""
    if world_size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    code, _, error = call_main_with_one_thread(*arguments)
    if code:
        print(error)
    os._exit(code)


def start(world_size, arguments):
    context, port = fork_server(), free_port()
    processes = [
        context.Process(target=command, args=(rank, world_size, port, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def result(place):
    return {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(run_folder, images, tmp_path_factory):
    """What an uninterrupted prediction leaves."""
    place = tmp_path_factory.mktemp("whole")
    [process] = start(1, words(run_folder, images, place))
    process.join()
    assert process.exitcode == 0
    found = result(place)
    assert found.keys() == {"p.csv", "f.npy"}
    assert found["p.csv"].count(b"\n") == 1 + IMAGES
    return found


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    run_folder, images, whole, tmp_path, first
):
    chance = random.Random(first)
    kills, world_size = 0, first
    while not (tmp_path / "p.csv").exists():
        processes = start(world_size, words(run_folder, images, tmp_path))
        before = len(list(tmp_path.glob("p.csv.partial/*.rows")))
        more = chance.randrange(1, 50)
        while any(process.is_alive() for process in processes):
            done = len(list(tmp_path.glob("p.csv.partial/*.rows")))
            if kills < 2 and done >= before + more:
                time.sleep(chance.random() * 0.02)
                for process in processes:
                    os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        for process in processes:
            process.join()
        codes = {process.exitcode for process in processes}
        assert codes in ({0}, {-signal.SIGKILL}, {0, -signal.SIGKILL}), codes
        world_size = 3 - world_size  # the next one has another number of processes
    assert kills == 2
    # The last kill may have come between the last two things that are done.
    for folder in tmp_path.glob("*p.csv.partial*"):
        shutil.rmtree(folder)
    assert result(tmp_path) == whole


def test_other_options_are_refused_until_overwritten(run_folder, images, tmp_path, capfd):
    [process] = start(1, words(run_folder, images, tmp_path))
    while not list(tmp_path.glob("p.csv.partial/*.rows")):
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    _, *asked = map(str, words(run_folder, images, tmp_path))
    assert predict.main([*asked, "--top-k", "2"]) == 2
    error = capfd.readouterr().err
    assert "--top-k (now 2, before None)" in error
    assert "--overwrite" in error
    other = [asked[0], str(images / "1.png"), *asked[2:]]
    assert predict.main(other) == 2
    error = capfd.readouterr().err
    assert "the list of images; number of images (now 1, before 120)" in error
    assert predict.main([*other, "--overwrite"]) == 0
    assert (tmp_path / "p.csv").read_bytes().count(b"\n") == 2
