"""What the four model classes share: weights are read and written as safetensors only, and files must be complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from ..publishing import PublishingMixin


class SafetensorsOnlyMixin(PublishingMixin):
    """Comes before `ModelMixin` in the bases of a model and tightens its loading and saving."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a model as diffusers does, but from safetensors only, and only with exactly the model's tensors.

        Args:
            pretrained_model_name_or_path: A folder that [`~SafetensorsOnlyMixin.save_pretrained`] wrote, or a Hub id.
            kwargs: As in diffusers; `use_safetensors` is always True.

        Raises:
            ValueError: If the weights lack a tensor of the model or hold one that it does not have, or
                `use_flashpack=True` is asked for.
            OSError: If there are no safetensors weights.
        """
        if kwargs.pop("use_flashpack", False):
            raise ValueError("use_flashpack must be False: weights are read as safetensors only, got True")
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for problem, keys in (("lack", info["missing_keys"]), ("must not hold", info["unexpected_keys"])):
            if keys:
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                raise ValueError(
                    f"weights {_weights_name(pretrained_model_name_or_path, kwargs)} {problem} {min(keys)}{more}: "
                    f"they must hold exactly the tensors of the {cls.__name__} that config.json describes"
                )
        return (model, info) if with_info else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Saves configuration and weights as diffusers does; the arguments are those of diffusers.

        Raises:
            ValueError: If `safe_serialization=False` is asked for.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization must be True: weights are written as safetensors only, got False")
        super().save_pretrained(save_directory, is_main_process, save_function, True, variant, max_shard_size, **kwargs)


def _weights_name(source: str | Path, options: dict[str, Any]) -> str:
    """How to call the weights in a message: the file or, if they are in shards, the index of the shards."""
    variant = f".{options['variant']}" if options.get("variant") else ""
    folder = Path(source) / (options.get("subfolder") or "")
    indices = sorted(folder.glob(f"*.safetensors.index{variant}.json"))
    return str(indices[0] if indices else folder / f"diffusion_pytorch_model{variant}.safetensors")
