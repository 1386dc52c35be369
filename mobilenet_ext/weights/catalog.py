"""Published weights by name: where they are, and what they are called in the cache.

keras/mobilenet_ALPHA_RESOLUTION[_no_top] are the 16 + 16 files of keras.applications.MobileNet,
with ALPHA 1_0, 7_5, 5_0 or 2_5. The others go by their repositories' names on the Hugging Face hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import WeightsError

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet"
HUB_URL = "https://huggingface.co/{name}/resolve/main"
HUGGINGFACE = ("google/mobilenet_v1_1.0_224", "google/mobilenet_v1_0.75_192")
TIMM = (
    "timm/mobilenetv1_100.ra4_e3600_r224_in1k",
    "timm/mobilenetv1_125.ra4_e3600_r224_in1k",
)
HUB_FILES = (
    ("config.json",),
    ("model.safetensors", "pytorch_model.bin"),
)
FAMILIES = ("keras/", "google/mobilenet", "timm/")


@dataclass(frozen=True)
class Published:
    """Files to have in one folder; of each tuple the first name that is there."""

    base_url: str
    folder: str  # in the cache
    files: tuple[tuple[str, ...], ...]
    sha256: str | None = None  # of the only file, where its publisher says so


def known_weights() -> tuple[str, ...]:
    """Return the names that `load_pretrained` downloads."""
    keras = tuple(
        f"keras/mobilenet_{alpha}_{resolution}{top}"
        for alpha in ("1_0", "7_5", "5_0", "2_5")
        for resolution in (224, 192, 160, 128)
        for top in ("", "_no_top")
    )
    return (*keras, *HUGGINGFACE, *TIMM)


def find_published(name: str) -> Published | None:
    """Look a name up; timm's may leave out the tag after the point.

    Raises:
        WeightsError: it is not known, though it begins as known names do.
    """
    full = {known.split(".ra4")[0]: known for known in TIMM}.get(name, name)
    if full in known_weights():
        return _published(full)
    if name.startswith(FAMILIES):
        raise WeightsError(f"{name}: expected a file or one of {', '.join(known_weights())}")
    return None


def _published(name: str) -> Published:
    if name.startswith("keras/"):
        # Keras publishes no checksums of these.
        stem = name.removeprefix("keras/")
        top = "_no_top" if stem.endswith("_no_top") else ""
        return Published(KERAS_URL, "keras", ((f"{stem.removesuffix('_no_top')}_tf{top}.h5",),))
    processor = (("preprocessor_config.json",),) if name in HUGGINGFACE else ()
    return Published(HUB_URL.format(name=name), name, (*HUB_FILES, *processor))
