"""SMEDJE_SERVING_WEIGHTS from the environment to the engine, and back to who asks which weights served."""

from pathlib import Path

import httpx2
import pytest
from tests.api_server import TINY, install_tiny_model, serving

from smedje import wiring
from smedje.errors import InvalidRequest
from smedje.modeling.products import multiplies_bf16
from smedje.settings import load_settings

KEY = "k" * 24


@pytest.mark.parametrize(
    "weights",
    [
        None,
        "fp32",
        "int8",
        pytest.param("bf16", marks=pytest.mark.skipif(not multiplies_bf16(), reason="no bf16 products here")),
    ],
)
def test_metrics_tell_which_weights_serve(tmp_path: Path, weights: str | None) -> None:
    """The setting reaches the engine that answers; fp32 is what an unset one means."""
    install_tiny_model(tmp_path)
    environ = {"SMEDJE_HOME": str(tmp_path), "SMEDJE_THREADS": "1", "SMEDJE_BOOTSTRAP_API_KEY": KEY}
    if weights is not None:
        environ["SMEDJE_SERVING_WEIGHTS"] = weights
    app = wiring.build_app(load_settings(environ))
    with serving(app) as url, httpx2.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as http:
        asked = {"model": TINY, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert http.post("/v1/chat/completions", json=asked, timeout=60).status_code == 200
        metrics = http.get("/metrics").text
        for kind in ("int8", "bf16"):
            series = f'smedje_engine{{base_model="{TINY}",what="{kind}_weights"}} {float(weights == kind)}'
            assert series in metrics
    log = (tmp_path / "logs" / f"engine-{TINY}.log").read_text()
    for kind in ("int8", "bf16"):
        assert (f"{kind} weights against fp32" in log) == (weights == kind)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """Kinds that there are not, and eight bits of an engine that is not ours, are errors when the server starts."""
    home = {"SMEDJE_HOME": str(tmp_path)}
    with pytest.raises(InvalidRequest, match="one of fp32, bf16, int8"):
        load_settings({**home, "SMEDJE_SERVING_WEIGHTS": "int4"})
    with pytest.raises(InvalidRequest, match="SMEDJE_VLLM_OPTIONS"):
        wiring._engine_settings(
            load_settings({**home, "SMEDJE_SERVING_WEIGHTS": "int8", "SMEDJE_ENGINE": "vllm", "SMEDJE_VLLM": "true"})
        )


def test_merging_is_what_the_setting_says(tmp_path: Path) -> None:
    """The engine's command tells it, `auto` where nothing is set; other words are refused."""
    home = {"SMEDJE_HOME": str(tmp_path)}
    for environ, word in ((home, "auto"), ({**home, "SMEDJE_SERVING_MERGED": "off"}, "off")):
        command = wiring._engine_settings(load_settings(environ)).command
        assert command[command.index("--merged") + 1] == word
    with pytest.raises(InvalidRequest, match="one of auto, off"):
        load_settings({**home, "SMEDJE_SERVING_MERGED": "always"})
