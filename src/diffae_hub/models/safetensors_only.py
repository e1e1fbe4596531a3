"""What the four model classes share: weights are read and written as safetensors only, and files must be complete."""

from pathlib import Path
from typing import Any, Self

from ..pretrained import model_folder
from ..publishing import PublishingMixin


class SafetensorsOnlyMixin(PublishingMixin):
    """Comes before `ModelMixin` in the bases of a model and tightens its loading and saving."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a model as diffusers does, but only from safetensors, which must hold exactly the model's tensors.

        The name of a bundled model is allowed, too (with `subfolder`).
        """
        source = model_folder(pretrained_model_name_or_path, kwargs, kwargs.get("subfolder") or "")
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "use_flashpack": False, "output_loading_info": True}
        model, info = super().from_pretrained(source, **kwargs)
        for problem, keys in (("lack", info["missing_keys"]), ("must not hold", info["unexpected_keys"])):
            if keys:
                place = "/".join(filter(None, (str(source), kwargs.get("subfolder"))))
                raise ValueError(
                    f"weights in {place} {problem} {', '.join(sorted(keys)[:3])} ({len(keys)} in all): they must hold "
                    f"exactly the tensors of the {cls.__name__} that config.json describes"
                )
        return (model, info) if with_info else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,  # a pipeline passes only what it finds in this signature
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Saves configuration and weights as diffusers does, but as safetensors only."""
        if not safe_serialization:
            raise ValueError("safe_serialization must be True: weights are written as safetensors only, got False")
        given = {"is_main_process": is_main_process, "save_function": save_function, "variant": variant}
        super().save_pretrained(save_directory, max_shard_size=max_shard_size, **given, **kwargs)
