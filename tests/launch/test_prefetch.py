"""tl prefetch: what a run loads later, without a network, is what was fetched, or is refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch import prefetch
from tl.errors import UserError
from tl.models import pins, published, weights, zoo

NAME = "shufflenet_v2_x0_5"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def published_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under a name as torchvision's: it ends in the first digits of their sha256."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(zoo.build(NAME, 1000).model.state_dict(), folder / "any.pth")
    digest = hashlib.sha256((folder / "any.pth").read_bytes()).hexdigest()
    return (folder / "any.pth").rename(folder / f"shufflenet-{digest[:10]}.pth")


@pytest.fixture
def server(published_file: Path, tmp_path: Path, monkeypatch: Any) -> Iterator[Any]:
    """Serves the file over HTTP; torchvision's entry has its address in place of the hub's."""
    handler = partial(Quiet, directory=str(published_file.parent))
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://127.0.0.1:{http.server_address[1]}/{published_file.name}"
    real = published.entry(NAME, "DEFAULT")
    # torchvision's own code downloads from there, and checks the sha256 in the name.
    entry = SimpleNamespace(
        url=url, get_state_dict=lambda **keys: torch.hub.load_state_dict_from_url(url, **keys)
    )
    monkeypatch.setattr(published, "entry", lambda *_: entry)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert real.url.endswith(".pth")
    running = True

    def stop() -> None:
        nonlocal running
        if running:
            running = False
            http.shutdown()
            http.server_close()
            thread.join()

    yield SimpleNamespace(stop=stop, file=tmp_path / "torch/hub/checkpoints" / published_file.name)
    stop()


def run(*arguments: object) -> int:
    return prefetch.main([str(argument) for argument in arguments])


def test_what_was_fetched_is_pinned_and_a_run_without_a_network_loads_it(server, capsys):
    assert run(f"model.name={NAME}") == 0
    digest = hashlib.sha256(server.file.read_bytes()).hexdigest()
    assert f"{NAME} DEFAULT  {digest}  {server.file}  (pinned)" in capsys.readouterr().out
    # as sha256sum writes it, and checks it
    pin = server.file.with_name(server.file.name + ".sha256")
    assert pin.read_text() == f"{digest}  {server.file.name}\n"
    server.stop()
    report = weights.load(zoo.build(NAME, 3), "DEFAULT")
    assert report.loaded > 0
    assert run(f"model.name={NAME}") == 0  # again: it is here already
    assert digest in capsys.readouterr().out


def test_a_file_that_is_not_what_was_pinned_is_refused_with_the_mend(server, capsys):
    assert run(f"model.name={NAME}") == 0
    other = zoo.build(NAME, 1000).model.state_dict()
    torch.save(other, server.file)
    with pytest.raises(UserError, match="is not the one that was pinned") as error:
        weights.load(zoo.build(NAME, 3), "DEFAULT")
    assert "Delete the weights file" in str(error.value)
    assert str(server.file) in str(error.value)
    capsys.readouterr()
    assert run(f"model.name={NAME}") == 2  # nor is it pinned anew without a word
    assert "is not the one that was pinned" in capsys.readouterr().err
    server.file.unlink()  # the mend
    assert run(f"model.name={NAME}") == 0


def test_a_download_is_held_against_a_pin_that_is_there_already(server):
    server.file.parent.mkdir(parents=True)
    pins.pin_of(server.file).write_text("0" * 64 + "\n")
    with pytest.raises(UserError, match="is not the one that was pinned"):
        weights.load(zoo.build(NAME, 3), "DEFAULT")


def test_a_file_put_by_hand_that_its_name_contradicts_is_said_to_be_one(server, capsys):
    server.file.parent.mkdir(parents=True)
    torch.save(zoo.build(NAME, 1000).model.state_dict(), server.file)
    assert run(f"model.name={NAME}") == 0
    assert "was not downloaded from torchvision" in capsys.readouterr().err


def test_without_a_network_it_says_what_to_put_where(server, capsys):
    server.stop()
    assert run(f"model.name={NAME}") == 2
    assert str(server.file) in capsys.readouterr().err


def test_real_weights_put_into_the_cache_are_pinned(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = published.cache_file("squeezenet1_0", "DEFAULT")
    file.parent.mkdir(parents=True)
    file.write_bytes((shared / "weights" / "squeezenet1_0-imagenet.pth").read_bytes())
    assert run("model.name=squeezenet1_0") == 0
    assert "(pinned)" in capsys.readouterr().out
    assert pins.check(file) is not None


@pytest.mark.parametrize("text", ["", "not a hash  file.pth\n", "ab" * 31 + "\n"])
def test_a_pin_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "w.pth").write_bytes(b"weights")
    pins.pin_of(tmp_path / "w.pth").write_text(text)
    with pytest.raises(UserError, match="Delete it, and `tl prefetch`"):
        pins.check(tmp_path / "w.pth")


def test_a_folder_that_may_not_be_written_is_said_with_the_mend(not_root):
    (not_root / "w.pth").write_bytes(b"weights")
    not_root.chmod(0o555)
    with pytest.raises(UserError, match="TORCH_HOME"):
        pins.pin(not_root / "w.pth")
    not_root.chmod(0o755)


def test_a_file_of_ones_own_is_hashed_and_not_pinned(tmp_path, published_file, capsys):
    file = tmp_path / "mine.pth"
    file.write_bytes(published_file.read_bytes())
    assert run(f"model.name={NAME}", f"model.weights={file}") == 0
    out = capsys.readouterr().out
    assert hashlib.sha256(file.read_bytes()).hexdigest() in out
    assert "not pinned" in out
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_of_a_graft_is_looked_at_too(tmp_path, capsys):
    wish = f"model.reuse.graft=[{{weights: {tmp_path / 'gone.pth'}, from: conv1}}]"
    assert run(f"model.name={NAME}", "model.weights=null", wish) == 2
    assert "gone.pth does not exist" in capsys.readouterr().err


def test_random_weights_have_nothing_to_fetch_and_no_config_is_a_mistake(capsys):
    assert run("model.weights=null") == 0
    assert "nothing to fetch" in capsys.readouterr().out
    assert run() == 2
    assert "whose weights?" in capsys.readouterr().err
    assert run("model.name=resnet19") == 2
    assert "Did you mean 'resnet1" in capsys.readouterr().err


def test_a_pinned_file_of_timm_is_loaded_itself_and_a_differing_one_refused(tmp_path, monkeypatch):
    """As the Hub's library keeps it: models--OWNER--NAME/snapshots/REVISION, named by refs/main."""
    timm = pytest.importorskip("timm")
    from huggingface_hub import constants
    from safetensors.torch import save_file

    name = "test_resnet.r160_in1k"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub = timm.get_pretrained_cfg(name).hf_hub_id
    folder = tmp_path / f"models--{hub.replace('/', '--')}"
    file = folder / "snapshots" / ("a" * 40) / "model.safetensors"
    file.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    state = timm.create_model(name).state_dict()
    save_file(state, file)
    assert run(f"model.name=timm:{name}") == 0
    assert pins.check(file)
    got = published.fetch(f"timm:{name}", "DEFAULT", {})
    assert all(torch.equal(got[key], value) for key, value in state.items())
    save_file({key: value + 1 for key, value in state.items()}, file)
    with pytest.raises(UserError, match="is not the one that was pinned"):
        published.fetch(f"timm:{name}", "DEFAULT", {})
