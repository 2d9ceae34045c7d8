"""Packaging. Lower bounds only: what is current must keep working."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
# Folders of the checkout, and where they lie in a wheel: under the package's own name, since others install a `plugins`, too.
INSIDE = {"plugins": "xtoolkit/plugins", "projects": "xtoolkit/recipes"}


def inside() -> dict[str, str]:
    """{file of the checkout: its place in a wheel}: plugins whole; of projects those that have recipes."""
    files = {path: path.relative_to(HERE) for name in INSIDE for path in sorted((HERE / name).rglob("*"))
             if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(HERE).parts)}
    with_recipes = {path.parts[:2] for path in files.values() if path.suffix == ".yaml"}
    return {str(path): str(Path(INSIDE[path.parts[0]], *path.parts[1:])) for path in files.values()
            if path.parts[0] == "plugins" or path.parts[:2] in with_recipes}


class Build(build_py):
    """Also copies recipes and plugins; an editable install reads them where they are."""

    def run(self):
        super().run()
        for source, target in inside().items() if not self.editable_mode else ():
            self.mkpath(str(Path(self.build_lib, target).parent))
            self.copy_file(str(HERE / source), str(Path(self.build_lib, target)))

    def get_outputs(self, include_bytecode=1):
        copied = [] if self.editable_mode else [str(Path(self.build_lib, target)) for target in inside().values()]
        return super().get_outputs(include_bytecode) + copied

    def get_source_files(self):
        return super().get_source_files() + list(inside())


setup(
    name="xtoolkit",
    version=(HERE / "xtoolkit/version.py").read_text(encoding="utf-8").split('"')[-2],
    description="Modular pretraining, fine-tuning and ablation of vision-language foundation models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["xtoolkit", "xtoolkit.*"]),
    package_data={"xtoolkit.prepare": ["pack/*", "pack/licenses/*"], "xtoolkit.report": ["templates/*"]},
    entry_points={"console_scripts": ["xtoolkit = xtoolkit.cli.main:main"]},
    cmdclass={"build_py": Build},
    install_requires=[
        "torch>=2.11", "torchvision", "timm>=1.0", "transformers>=5.17", "fvcore", "iopath", "pyyaml", "jinja2", "tensorboard",
        "triton>=3.6; sys_platform == 'linux'", "numpy", "pillow>=11.3", "tokenizers", "safetensors", "huggingface_hub", "fsspec",
        "tqdm", "scikit-learn", "scipy",
    ],
    extras_require={
        "test": ["pytest", "pytest-xdist", "pyarrow"],
        "parquet": ["pyarrow"],  # text and downloads that come as Parquet files; nothing else imports it
        "slurm": ["submitit"],  # submits the jobs of a table of runs (`xtoolkit ablate --slurm`); nothing else imports it
        "video": ["av"],  # decodes video files; nothing else imports it
        # Exact, since the pack is rebuilt byte for byte: only for whoever rebuilds it, never for whoever uses it.
        "sample-build": ["resvg-py==0.5.0", "pillow==13.0.0", "numpy==2.4.6", "tokenizers==0.23.3"],
    },
)
