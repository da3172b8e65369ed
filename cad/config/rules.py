"""What sections must agree on: checked by `Params` for every entry, and by the trainings for what they are handed."""

from collections.abc import Iterable

from cad.errors import UserError


def check_groups(stage: str, batch: int, group: int) -> None:
    """UserError unless a batch divides into minibatch-deviation groups; a batch below `group` is one group."""
    if batch % min(group, batch):
        raise UserError(
            f"{stage}.batch: {batch} does not divide into groups of discriminator.mbstd_group = {group}; "
            "make it a multiple"
        )


def check_clamps(stage: str, precisions: Iterable[str], clamps: Iterable[float | None]) -> None:
    """UserError if a network would compute in float16 without a bound on its activations."""
    if "float16" in precisions and None in clamps:
        raise UserError(
            f"{stage}: float16 overflows without generator.activation_clamp and discriminator.activation_clamp; "
            "set both to 256, or take bfloat16"
        )


def check_patch(size: int, resolution: int) -> None:
    """UserError unless a patch of `size` pixels can be halved to the end and fits into an image of `resolution`."""
    if size > resolution or size & (size - 1):
        raise UserError(
            f"stage2.patch_size: {size} px is no power of two up to generator.output_resolution = {resolution}; "
            f"choose 32 or more, at most {resolution}"
        )
