"""Rival: FastAPI in front of ONNX Runtime, one uvicorn worker, sessions shared by the thread pool.

What most teams write first. `--threads 1 --no-spinning` is the better setting under concurrent requests; both are run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from benchmarks.serving.pipeline import Pipeline


def application(pipeline: Pipeline) -> FastAPI:
    """The web application around a pipeline."""
    app = FastAPI()

    @app.post("/categorize")
    async def categorize(request: Request, title: str) -> dict:
        image = await request.body()
        answers = await run_in_threadpool(pipeline, [image], [title])
        return answers.rows()[0]

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-spinning", dest="spinning", action="store_false")
    arguments = parser.parse_args()
    pipeline = Pipeline(arguments.repository, arguments.threads, spinning=arguments.spinning)
    uvicorn.run(application(pipeline), host="127.0.0.1", port=arguments.port, log_level="warning")
