"""The figures that the paper reports, to print beside our own. Only reconstruction and probe tables that we can rerun.

The keys of a row are `TrainingMethod` names: prediction type, noise schedule and phases say how a model was trained.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

METRICS = ("psnr_db", "ssim", "lpips_alex", "fid_torch_fidelity", "fid_clean_fid")
METRIC_TITLES = {
    "psnr_db": "PSNR (dB) ↑",
    "ssim": "SSIM ↑",
    "lpips_alex": "LPIPS ↓",
    "fid_torch_fidelity": "FID (tf) ↓",
    "fid_clean_fid": "FID (cf) ↓",
}


def format_papers(metric: str, value: float) -> str:
    """A figure of the paper as it prints it: PSNR with three decimals, the others with four, LPIPS with up to six."""
    return np.format_float_positional(value, min_digits=3 if metric == "psnr_db" else 4)


class TrainingMethod(NamedTuple):
    """How a model was trained: a row of the paper's tables."""

    prediction_type: str  # "epsilon", "sample" or "v_prediction"
    noise_schedule: str  # "linear_beta", "inverted" or "shifted_cosine"
    scaling_factor: int | None = None  # S of the shifted cosine schedule
    two_phase: bool = False  # whether the first quarter had t = 1

    @property
    def title(self) -> str:
        """In the paper's notation, such as `v, SC-4, 2-phase`."""
        prediction = {"epsilon": "ε", "sample": "x", "v_prediction": "v"}[self.prediction_type]
        schedules = {"linear_beta": "linear-β", "shifted_cosine": f"SC-{self.scaling_factor}"}
        schedule = schedules.get(self.noise_schedule, self.noise_schedule)
        return f"{prediction}, {schedule}, {'2' if self.two_phase else '1'}-phase"


def _shifted_cosine(prediction_type: str, scaling_factor: int, two_phase: bool = False) -> TrainingMethod:
    return TrainingMethod(prediction_type, "shifted_cosine", scaling_factor, two_phase)


PREECHAKUL = TrainingMethod("epsilon", "linear_beta")
HUDSON = TrainingMethod("epsilon", "inverted")
ONE_PHASE = _shifted_cosine("v_prediction", 4)
TWO_PHASE = _shifted_cosine("v_prediction", 4, two_phase=True)

Figures = tuple[float, float, float, float, float]  # in the order of METRICS

# Stochastic autoencoding of CIFAR-10; 32M examples.
TABLE_1: dict[TrainingMethod, Figures] = {
    _shifted_cosine("epsilon", 4): (15.534, 0.4954, 0.0373, 4.7651, 5.1589),
    _shifted_cosine("sample", 4): (27.147, 0.9075, 0.0065, 3.9349, 5.8098),
    _shifted_cosine("v_prediction", 4): (23.664, 0.8237, 0.0116, 1.8133, 2.1323),
}
TABLE_2: dict[TrainingMethod, Figures] = {
    TrainingMethod("sample", "linear_beta"): (30.296, 0.9516, 0.0038, 6.8907, 8.4820),
    _shifted_cosine("sample", 1): (29.019, 0.9369, 0.0046, 5.0481, 7.0456),
    _shifted_cosine("sample", 2): (28.245, 0.9265, 0.0053, 4.8375, 6.9604),
    _shifted_cosine("sample", 4): (27.147, 0.9075, 0.0065, 3.9349, 5.8098),
    _shifted_cosine("sample", 8): (25.057, 0.8596, 0.0101, 4.4343, 6.2864),
    TrainingMethod("v_prediction", "linear_beta"): (29.438, 0.9437, 0.0046, 7.7344, 9.4366),
    _shifted_cosine("v_prediction", 1): (28.626, 0.9333, 0.0048, 4.3175, 5.2237),
    _shifted_cosine("v_prediction", 2): (27.094, 0.9082, 0.0064, 2.7339, 3.3155),
    _shifted_cosine("v_prediction", 4): (23.664, 0.8237, 0.0116, 1.8133, 2.1323),
    _shifted_cosine("v_prediction", 8): (20.842, 0.7176, 0.0193, 2.0235, 2.3003),
}
# 64M examples. The paper's second row, phase 1 alone, is not a diffusion autoencoder yet and is left out.
TABLE_3: dict[TrainingMethod, Figures] = {
    ONE_PHASE: (25.955, 0.8863, 0.0072, 1.2566, 1.4634),
    _shifted_cosine("v_prediction", 2, two_phase=True): (30.711, 0.9580, 0.0030, 3.2172, 4.0042),
    TWO_PHASE: (30.351, 0.9552, 0.0032, 2.1149, 2.7153),
    _shifted_cosine("v_prediction", 8, two_phase=True): (28.647, 0.9367, 0.0050, 2.1368, 2.6579),
    _shifted_cosine("v_prediction", 16, two_phase=True): (22.477, 0.8176, 0.0167, 3.4845, 4.0712),
}
# Data set -> method -> (stochastic autoencoding, inversion); 50 steps each way.
TABLE_4: dict[str, dict[TrainingMethod, tuple[Figures, Figures]]] = {
    "CIFAR-10 32": {
        PREECHAKUL: ((26.887, 0.9048, 0.006787, 5.2448, 6.2506), (35.667, 0.9834, 0.002249, 11.4542, 14.8504)),
        ONE_PHASE: ((25.955, 0.8863, 0.007197, 1.2566, 1.4634), (49.510, 0.9995, 0.000071, 0.5434, 0.6872)),
        TWO_PHASE: ((30.351, 0.9552, 0.003217, 2.1149, 2.7153), (50.113, 0.9996, 0.000044, 0.7560, 0.9032)),
    },
    "CelebA 64": {
        PREECHAKUL: ((23.974, 0.8186, 0.030239, 11.3050, 14.3548), (35.929, 0.9744, 0.008320, 15.0237, 19.5310)),
        ONE_PHASE: ((23.943, 0.8160, 0.025720, 1.8559, 2.2449), (45.969, 0.9978, 0.000766, 1.2281, 1.6972)),
        TWO_PHASE: ((26.122, 0.8696, 0.021513, 2.3592, 2.9030), (47.646, 0.9982, 0.000700, 1.5277, 2.1107)),
    },
    "Bedroom 128": {
        PREECHAKUL: ((16.120, 0.4051, 0.282071, 28.8706, 26.2747), (29.039, 0.8932, 0.102119, 16.8510, 17.9375)),
        ONE_PHASE: ((17.964, 0.4757, 0.268361, 3.3717, 3.9362), (30.412, 0.9457, 0.056554, 1.6781, 2.3033)),
        TWO_PHASE: ((20.309, 0.5982, 0.183325, 3.2151, 3.9847), (37.268, 0.9850, 0.014716, 1.1632, 2.0454)),
    },
    "ImageNet 32": {
        PREECHAKUL: ((21.168, 0.7146, 0.017876, 12.4695, 13.6909), (34.794, 0.9811, 0.003229, 8.8971, 11.5388)),
        ONE_PHASE: ((20.708, 0.6979, 0.018849, 8.5026, 9.4456), (45.444, 0.9985, 0.000183, 0.5794, 0.7365)),
        TWO_PHASE: ((27.811, 0.9210, 0.005147, 4.1131, 5.5029), (48.892, 0.9994, 0.000045, 0.6588, 0.8226)),
    },
}
# Perceptual path length, 200 pairs.
TABLE_5: dict[str, dict[TrainingMethod, float]] = {
    "CIFAR-10 32": {PREECHAKUL: 159.52, ONE_PHASE: 179.24, TWO_PHASE: 155.39},
    "CelebA 64": {PREECHAKUL: 383.98, ONE_PHASE: 378.77, TWO_PHASE: 362.61},
    "Bedroom 128": {PREECHAKUL: 770.44, ONE_PHASE: 484.17, TWO_PHASE: 438.73},
    "ImageNet 32": {PREECHAKUL: 151.19, ONE_PHASE: 164.54, TWO_PHASE: 146.87},
}
# Stochastic autoencoding after Hudson et al.
TABLE_9: dict[str, Figures] = {
    "CIFAR-10 32": (3.834, -0.1038, 0.235412, 117.0716, 130.0356),
    "CelebA 64": (10.985, 0.3069, 0.328190, 163.6320, 190.6296),
    "Bedroom 128": (7.709, 0.1615, 0.652557, 276.7475, 280.5181),
    "ImageNet 32": (12.983, 0.4536, 0.070556, 71.7630, 91.9553),
}
# Macro-averaged AUROC of linear probes: table 10 (40 attributes of CelebA) and table 11 (10 classes of CIFAR-10).
TABLE_10_AVERAGE: dict[TrainingMethod, float] = {PREECHAKUL: 0.9263, ONE_PHASE: 0.9254, TWO_PHASE: 0.9195}
TABLE_11_AVERAGE: dict[TrainingMethod, float] = {PREECHAKUL: 0.9624, ONE_PHASE: 0.9579, TWO_PHASE: 0.9612}
# Accuracy on CIFAR-10's test images (section 5.2).
PROBE_ACCURACY: dict[TrainingMethod, float] = {PREECHAKUL: 0.7271, ONE_PHASE: 0.7061, TWO_PHASE: 0.7227}
TABLE_10: dict[str, tuple[float, float, float]] = {  # in the order of TABLE_10_AVERAGE
    "5_o_Clock_Shadow": (0.9416, 0.9419, 0.9356),
    "Arched_Eyebrows": (0.8986, 0.8948, 0.8957),
    "Attractive": (0.9060, 0.9070, 0.9019),
    "Bags_Under_Eyes": (0.8758, 0.8759, 0.8732),
    "Bald": (0.9881, 0.9884, 0.9834),
    "Bangs": (0.9824, 0.9829, 0.9743),
    "Big_Lips": (0.7661, 0.7634, 0.7619),
    "Big_Nose": (0.8747, 0.8739, 0.8723),
    "Black_Hair": (0.9354, 0.9320, 0.9196),
    "Blond_Hair": (0.9794, 0.9784, 0.9727),
    "Blurry": (0.9659, 0.9683, 0.9660),
    "Brown_Hair": (0.8572, 0.8538, 0.8216),
    "Bushy_Eyebrows": (0.9288, 0.9272, 0.9235),
    "Chubby": (0.9464, 0.9465, 0.9403),
    "Double_Chin": (0.9577, 0.9565, 0.9528),
    "Eyeglasses": (0.9965, 0.9969, 0.9959),
    "Goatee": (0.9745, 0.9740, 0.9707),
    "Gray_Hair": (0.9869, 0.9860, 0.9835),
    "Heavy_Makeup": (0.9762, 0.9758, 0.9734),
    "High_Cheekbones": (0.9434, 0.9433, 0.9400),
    "Male": (0.9967, 0.9965, 0.9963),
    "Mouth_Slightly_Open": (0.9816, 0.9788, 0.9797),
    "Mustache": (0.9656, 0.9667, 0.9644),
    "Narrow_Eyes": (0.8795, 0.8778, 0.8766),
    "No_Beard": (0.9728, 0.9729, 0.9695),
    "Oval_Face": (0.7463, 0.7484, 0.7411),
    "Pale_Skin": (0.9703, 0.9704, 0.9670),
    "Pointy_Nose": (0.7856, 0.7843, 0.7792),
    "Receding_Hairline": (0.9350, 0.9331, 0.9262),
    "Rosy_Cheeks": (0.9624, 0.9624, 0.9576),
    "Sideburns": (0.9797, 0.9797, 0.9745),
    "Smiling": (0.9810, 0.9803, 0.9804),
    "Straight_Hair": (0.7966, 0.7921, 0.7643),
    "Wavy_Hair": (0.8802, 0.8782, 0.8548),
    "Wearing_Earrings": (0.9014, 0.8980, 0.8816),
    "Wearing_Hat": (0.9935, 0.9929, 0.9865),
    "Wearing_Lipstick": (0.9835, 0.9829, 0.9816),
    "Wearing_Necklace": (0.7984, 0.7971, 0.7928),
    "Wearing_Necktie": (0.9441, 0.9409, 0.9372),
    "Young": (0.9150, 0.9151, 0.9107),
}
TABLE_11: dict[str, tuple[float, float, float]] = {  # in the order of TABLE_11_AVERAGE
    "airplane": (0.9720, 0.9701, 0.9724),
    "automobile": (0.9830, 0.9813, 0.9837),
    "bird": (0.9347, 0.9298, 0.9281),
    "cat": (0.9192, 0.9119, 0.9205),
    "deer": (0.9609, 0.9494, 0.9515),
    "dog": (0.9428, 0.9360, 0.9437),
    "frog": (0.9785, 0.9781, 0.9812),
    "horse": (0.9714, 0.9664, 0.9722),
    "ship": (0.9839, 0.9795, 0.9799),
    "truck": (0.9774, 0.9766, 0.9786),
}
