"""Packaging. Lower bounds only: what is current must keep working."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="xtoolkit",
    version="0.1.0",
    description="Modular pretraining, fine-tuning and ablation of vision-language foundation models",
    long_description=Path(__file__).with_name("README.md").read_text() if Path(__file__).with_name("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["xtoolkit", "xtoolkit.*", "plugins", "plugins.*"]),
    package_data={"xtoolkit.prepare": ["pack/*", "pack/licenses/*"], "xtoolkit.report": ["templates/*"]},
    install_requires=[
        "torch>=2.11", "torchvision", "timm>=1.0", "transformers>=5.17", "fvcore", "iopath", "pyyaml", "jinja2", "tensorboard",
        "triton>=3.6; sys_platform == 'linux'", "numpy", "pillow", "tokenizers", "safetensors", "huggingface_hub", "fsspec",
    ],
    extras_require={
        "test": ["pytest", "pyarrow"],
        "parquet": ["pyarrow"],  # text and downloads that come as Parquet files; nothing else imports it
        # Exact, since the pack is rebuilt byte for byte: only for whoever rebuilds it, never for whoever uses it.
        "sample-build": ["resvg-py==0.5.0", "pillow==13.0.0", "numpy==2.4.6", "tokenizers==0.23.3"],
    },
)
