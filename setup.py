"""Package metadata. Tool settings are in pyproject.toml, the set-up of a working copy is in the Makefile.

Release: set `__version__` in virst_hf/version.py, move "Unreleased" of CHANGELOG.md under that number, run
`make test`, tag the commit `v<version>`, build with `pip wheel --no-deps .`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "virst_hf" / "version.py").read_text(encoding="utf-8")).group(1)

# The only two platforms for which decord has a wheel; elsewhere PyAV reads the files.
HAS_DECORD_WHEEL = (
    "(platform_system == 'Linux' and platform_machine == 'x86_64') "
    "or (platform_system == 'Windows' and platform_machine == 'AMD64')"
)

REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "transformers>=5.23,<6",
    "accelerate>=1.1",
    "peft>=0.18",
    "sam2>=1.1",
    "datasets>=4",
    "huggingface-hub>=1.31",
    "safetensors>=0.8",
    "evaluate>=0.4.3",
    f"decord>=0.6; {HAS_DECORD_WHEEL}",
    "av>=14.1",  # has VideoFrame.rotation
    "pycocotools>=2.0.8",
    "opencv-python-headless>=4.10",
    "scipy>=1.11",
    "numpy>=1.26",
    "pillow>=10.1",
    "jinja2>=3.1",
    "pyyaml>=6",
    "tqdm>=4.66",
]

EXTRAS = {
    "train": ["deepspeed>=0.15"],
    "demo": ["gradio>=5"],
    "dev": ["hypothesis>=6.100", "pytest>=8", "pytest-timeout>=2.3", "ruff==0.17.6", "setuptools>=77", "wheel>=0.43"],
}

setup(
    name="virst_hf",
    version=VERSION,
    description="VIRST, a video segmentation model that follows sentences, as a Hugging Face Transformers model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="video segmentation, referring expressions, transformers, sam2, vision-language model",
    packages=find_packages(include=["virst_hf", "virst_hf.*"]),
    package_data={"virst_hf": ["chat_template.jinja", "py.typed", "tiny/*"]},
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["virst=virst_hf.cli.main:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
