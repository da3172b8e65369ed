"""How a picture is brought into the project: experiments/inputs.yaml, which no stage reads."""

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from cad.config import Count, Section
from cad.config.sections import Fraction, NotNegative, Text
from cad.errors import UserError


class BringSettings(Section):
    """All of experiments/inputs.yaml."""

    captioner: Text = Field(description="BLIP that captions a picture without a prompt (Sec. 4): a folder or a hub id")
    caption_tokens: Count = Field(description="most tokens of a caption; [ours]")
    matting_model: Text = Field(description="rembg's network for pictures with a background; [ours]")
    matting_folder: Text = Field(description="folder of its file, MODEL.onnx; ~ is your home, nothing is downloaded")
    white_border: Fraction = Field(description="from this share of white border pixels on, white is background; [ours]")
    assumed_polar_deg: float = Field(gt=0, lt=180, description="polar angle where none can be estimated [deg]; [ours]")
    image_model: Text | None = Field(description="Stable Diffusion folder or hub id; null takes models.refiner")
    image_steps: int = Field(ge=1, le=1000, description="DDIM steps of text-to-image")
    image_guidance: NotNegative = Field(description="classifier-free guidance scale of text-to-image")


def load_settings(path: Path) -> BringSettings:
    """Read and check the file; UserError names it and the first wrong key."""
    try:
        return BringSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; run from the repository's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        said = str(fault).splitlines()[0]
        raise UserError(f"{path}: is no valid YAML ({said}); restore it with `git restore {path}`") from None
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; see cad/inputs/settings.py") from None
