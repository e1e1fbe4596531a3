"""diffae_hub: diffusion autoencoders in the style of diffusers.

The public API is flat and lazy: `from diffae_hub import DiffusionAutoencoderPipeline` loads only what it needs.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

# Name -> module that defines it. `ModelMixin` and `SchedulerMixin` are here because diffusers looks them up in the
# library that model_index.json names, to know how a component is loaded.
_LAZY = {
    "AttributeClassifier": "diffae_hub.models.attribute_classifier",
    "ConditionedUNet2DModel": "diffae_hub.models.conditioned_unet_2d",
    "DiffusionAutoencoderPipeline": "diffae_hub.pipelines.pipeline_diffusion_autoencoder",
    "DiffusionAutoencoderPipelineOutput": "diffae_hub.pipelines.stages",
    "LatentCodeModel": "diffae_hub.models.latent_code_model",
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
    "SemanticEncoderModel": "diffae_hub.models.semantic_encoder",
    "VPDDIMInverseScheduler": "diffae_hub.schedulers.scheduling_vp_ddim_inverse",
    "VPDDIMScheduler": "diffae_hub.schedulers.scheduling_vp_ddim",
    "list_models": "diffae_hub.pretrained",
    "VPDPMSolverMultistepScheduler": "diffae_hub.schedulers.scheduling_vp_dpmsolver_multistep",
    "load_codes": "diffae_hub.codes",
    "nearest_codes": "diffae_hub.codes",
}

__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:  # `X as X` tells type checkers that the name is public
    from diffusers import ModelMixin as ModelMixin
    from diffusers import SchedulerMixin as SchedulerMixin

    from diffae_hub.codes import load_codes as load_codes
    from diffae_hub.codes import nearest_codes as nearest_codes
    from diffae_hub.models.attribute_classifier import AttributeClassifier as AttributeClassifier
    from diffae_hub.models.conditioned_unet_2d import ConditionedUNet2DModel as ConditionedUNet2DModel
    from diffae_hub.models.latent_code_model import LatentCodeModel as LatentCodeModel
    from diffae_hub.models.semantic_encoder import SemanticEncoderModel as SemanticEncoderModel
    from diffae_hub.pipelines.pipeline_diffusion_autoencoder import (
        DiffusionAutoencoderPipeline as DiffusionAutoencoderPipeline,
    )
    from diffae_hub.pipelines.stages import DiffusionAutoencoderPipelineOutput as DiffusionAutoencoderPipelineOutput
    from diffae_hub.pretrained import list_models as list_models
    from diffae_hub.schedulers.scheduling_vp_ddim import VPDDIMScheduler as VPDDIMScheduler
    from diffae_hub.schedulers.scheduling_vp_ddim_inverse import VPDDIMInverseScheduler as VPDDIMInverseScheduler
    from diffae_hub.schedulers.scheduling_vp_dpmsolver_multistep import (
        VPDPMSolverMultistepScheduler as VPDPMSolverMultistepScheduler,
    )


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
