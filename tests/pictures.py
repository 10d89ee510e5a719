"""Makes the README's picture of Datasette from real data: a router that answers requests, and a collector.

Usage: python -m tests.pictures [--seconds 180]

Needs Chromium, and llama-server built from source (the first run builds it).
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.support.chromium import take_picture
from tests.support.collector import Collector
from tests.support.datasette_server import ROOT, DatasetteServer
from tests.support.gguf_files import write_tiny_llama
from tests.support.llama_build import CURRENT, llama_server_program
from tests.support.llama_router import LlamaRouter

PICTURE = ROOT / "config" / "pictures" / "datasette.png"
MODELS = ("tiny-chat", "tiny-coder", "tiny-writer")
WIDTH, HEIGHT, SECONDS_A_DAY = 1280, 1020, 86_400


def send_requests(router: LlamaRouter, seconds: int) -> None:
    """Send requests as people do: several at once, then a pause, for changing models."""
    generator = random.Random(7)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        model = generator.choice(MODELS)
        for _ in range(generator.randrange(20, 120)):
            router.complete(model, tokens=generator.randrange(20, 400))
        time.sleep(generator.uniform(0, 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=180)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        models = directory / "models"
        models.mkdir()
        for model in MODELS:
            write_tiny_llama(models / f"{model}.gguf")
        program = llama_server_program(CURRENT)
        with LlamaRouter(program, models, directory / "router.log") as router:
            settings = (
                f'[sampling]\ninterval = 1\n[llama_server]\nurl = "{router.url}"\n'
                f'[models]\ndirectory = "{models}"\n[logs]\nfiles = ["{directory}/router.log"]\n'
            )
            with Collector(directory, settings) as collector:
                send_requests(router, seconds)
                with DatasetteServer(collector.database) as datasette:
                    PICTURE.parent.mkdir(exist_ok=True)
                    days = round(seconds / SECONDS_A_DAY, 4)
                    take_picture(f"{datasette.url}/-/dashboards/llama?days={days}", PICTURE, WIDTH, HEIGHT)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
