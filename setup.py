"""Packaging; the environment markers choose the fairseq distribution that runs on each Python."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "fastdiss_fairseq/__init__.py").read_text()).group(1)
#: Plots, ROUGE and tensorboard logs.
EXPERIMENTS = ["matplotlib", "rouge-score>=0.1.2", "tensorboardX"]
#: examples/serving.
SERVE = ["fastapi", "uvicorn"]
#: --decoding-onnx.
ONNX = ["onnx", "onnxruntime"]

setup(
    name="fastdiss-fairseq",
    version=VERSION,
    description="FastDiSS: few-step continuous diffusion for sequence-to-sequence text, as a fairseq extension",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.8",
    packages=find_packages(include=["fastdiss_fairseq", "fastdiss_fairseq.*"]),
    install_requires=[
        'torch>=2.6; python_version >= "3.11"',
        've-fairseq==0.12.3; python_version >= "3.11"',
        'torch>=1.12,<1.13; python_version < "3.11"',
        'torchaudio>=0.12,<0.13; python_version < "3.11"',
        'fairseq==0.12.2; python_version < "3.11"',
        'numpy; python_version >= "3.11"',
        'numpy<2; python_version < "3.11"',
        "sacrebleu>=2",
        "sacremoses",
        "subword-nmt",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-cov",
            "pytest-xdist>=3.2",
            "hypothesis",
            "playwright",
            "httpx",
            "ruff==0.17.5",
            "mypy",
            *EXPERIMENTS,
            *SERVE,
            *ONNX,
        ],
        "experiments": EXPERIMENTS,
        "serve": SERVE,
        "onnx": ONNX,
    },
    entry_points={
        "console_scripts": [
            "fastdiss-score = fastdiss_fairseq.tools.scoring:cli_main",
            "fastdiss-sweep = fastdiss_fairseq.tools.sweep:cli_main",
            "fastdiss-benchmark = fastdiss_fairseq.tools.benchmark:cli_main",
            "fastdiss-export = fastdiss_fairseq.tools.export:cli_main",
            "fastdiss-average = fastdiss_fairseq.tools.average:cli_main",
            "fastdiss-distill = fastdiss_fairseq.tools.distill:cli_main",
            "fastdiss-ablate = fastdiss_fairseq.tools.ablate:cli_main",
            "fastdiss-trace = fastdiss_fairseq.tools.trace:cli_main",
        ]
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
