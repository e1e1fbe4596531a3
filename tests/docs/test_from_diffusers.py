"""The page "Coming from diffusers": each row of its table has a test."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "from_diffusers.md"

# How a row begins, and its test.
ROWS = {
    "`Pipeline.from_pretrained(id)`": "hub/test_push.py::test_train_push_and_load_by_id",
    "`revision`": "hub/test_faults.py::test_only_what_loading_reads_is_downloaded",
    "`variant=": "pipelines/test_diffusers_contract.py::test_dtype_for_all_or_by_component",
    "`DiffusionPipeline.": "hub/test_push.py::test_every_way_of_publishing_gives_our_card_and_loads_in_plain_diffusers",
    "`Component.": "test_bundled_model.py::test_bundled_models_are_what_their_presets_say",
    "`pipe(image)`": "pipelines/test_pipeline_diffusion_autoencoder.py::test_call_is_encode_invert_decode",
    "`image=`": "pipelines/test_image_processor.py::test_all_inputs_mean_the_same",
    "`output_type=": "pipelines/test_pipeline_diffusion_autoencoder.py::test_output_types_agree",
    "`num_inference_steps`": "pipelines/test_diffusers_contract.py::test_batch_consistency",
    "`callback_on_step_end`": "pipelines/test_diffusers_contract.py::test_callback_sees_and_changes_every_step",
    "`pipe.scheduler = ": "test_bundled_model.py::test_solvers_of_diffusers_follow_the_flow",
    "`pipe.vae.": "pipelines/test_pipeline_diffusion_autoencoder.py::test_tiles_are_blended_at_each_step",
    "`pipe.to(": "pipelines/test_diffusers_contract.py::test_offload",
    "`pipe.components`": "pipelines/test_diffusers_contract.py::test_components_and_from_pipe",
    "`pipe.progress_bar`": "pipelines/test_diffusers_contract.py::test_progress_bars_have_names",
    "safetensors": "models/test_safetensors_only.py::test_pickles_are_neither_written_nor_read",
    "`accelerate launch": "training/test_processes.py::test_two_streaming_processes_are_stopped_and_resumed",
    "`unet`": "pipelines/test_diffusers_contract.py::test_saved_folder_loads_to_the_bit",
    "`latents`": "pipelines/test_pipeline_diffusion_autoencoder.py::test_bad_codes_and_noises",
}


def test_the_table_has_no_other_rows() -> None:
    table = PAGE.read_text().split("|---|---|\n")[1].split("\n\n")[0].splitlines()
    assert len(table) == len(ROWS)
    assert all(row.startswith(f"| {beginning}") for row, beginning in zip(table, ROWS, strict=True))


@pytest.mark.parametrize("test", sorted(set(ROWS.values())))
def test_its_tests_exist(test: str) -> None:
    file, name = test.split("::")
    assert f"def {name}" in (TESTS / file).read_text()
