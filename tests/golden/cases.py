"""How each method's golden arrays and published hyper-parameters map onto ours. One function per method."""

from typing import NamedTuple

import numpy as np

from jopsd.methods import Eopd, Method, Opsd, PwOpsd, Reopold, Sft


class Case(NamedTuple):
    method: Method
    student_logits: np.ndarray  # [B,T,V], aligned
    teachers: dict[str, np.ndarray]
    targets: np.ndarray  # [B,T]
    mask: np.ndarray  # [B,T]
    loss: float
    gradient: np.ndarray  # [B,T,V]
    tolerance: float = 1e-9
    scale: float = 1.0  # from our normaliser to the reference's
    step: int = 0
    informational: bool = False


def _divergence_options(published: dict) -> dict:
    """Options shared by OPSD and its descendants, from either published naming."""
    options = {"temperature": published.get("temperature", 1.0), "alpha": published.get("beta", 0.0)}
    if published.get("jsd_token_clip"):
        options["entry_clip"] = published["jsd_token_clip"]
    top_k = published.get("top_k_loss") or published.get("top_k_distill")
    if top_k:
        options |= {"loss": "topk", "top_k": top_k, "tail": published.get("distill_add_tail", False)}
    return options


def _aligned(arrays: dict) -> dict:
    """The arrays that every OPSD-like case has, under one set of names."""
    if "student_logits_full" in arrays:  # whole forward passes: completion token t is predicted one column earlier
        student, teacher = int(arrays["student_prompt_len"]), int(arrays["teacher_prompt_len"])
        labels = arrays["labels_full"][:, student:]
        return {
            "student_logits": arrays["student_logits_full"][:, student - 1 : -1],
            "teachers": {"solution": arrays["teacher_logits_full"][:, teacher - 1 : -1]},
            "targets": labels,
            "mask": labels != -100,
            "loss": float(arrays["loss"]),
            "gradient": arrays["grad_student_logits_slice"],
        }
    if "response_mask" in arrays:
        targets, mask = arrays["responses"], arrays["response_mask"] != 0
    else:
        targets, mask = arrays["labels"], arrays["labels"] != -100
    return {
        "student_logits": arrays["student_logits"].astype(np.float64),
        "teachers": {"solution": arrays["teacher_logits"].astype(np.float64)},
        "targets": targets,
        "mask": mask,
        "loss": float(arrays["loss"]),
        "gradient": arrays["grad_student_logits"],
    }


def _aligned_f64(arrays: dict) -> dict:
    """The same where the reference ran in float32 and a float64 run of it is stored beside."""
    return _aligned(arrays) | {"loss": float(arrays["loss_f64"]), "gradient": arrays["grad_f64"]}


def opsd(published: dict, arrays: dict) -> Case:
    if published.get("full_logit_distill") is False:
        raise NotImplementedError("squared gap of sampled log-probabilities")
    if published.get("rollout_is_threshold") is not None:
        raise NotImplementedError("rollout importance weights")
    fields = _aligned(arrays)
    if published.get("use_tinker_loss"):
        return Case(Opsd(temperature=published["temperature"], loss="sampled"), **fields)
    if "loss_if_computed_in_f64" in arrays:
        # The published loss rounds to bfloat16 throughout; the stored float64 figures are what a right one gives.
        fields |= {"loss": float(arrays["loss_if_computed_in_f64"]), "gradient": arrays["grad_if_computed_in_f64"]}
        return Case(Opsd(**_divergence_options(published)), **fields, informational=True)
    return Case(Opsd(**_divergence_options(published)), **fields)


def pwopsd(published: dict, arrays: dict) -> Case:
    fields = _aligned_f64(arrays)
    method = PwOpsd(
        **_divergence_options(published),
        w_min=published["position_w_min"],
        tau=published["position_tau"],
        s=published["position_s"],
        reduction="token_mean" if published.get("position_global_reduction") else "sequence_mean",
    )
    return Case(method, **fields, tolerance=2e-6)  # the reference's position weights are float32


def eopd(published: dict, arrays: dict) -> Case:
    return Case(Eopd(temperature=published["temperature"]), **_aligned_f64(arrays))


def reopold(published: dict, arrays: dict) -> Case:
    method = Reopold(
        temperature=published["temperature"],
        mix=published["reopold_lambda"],
        keep=published["reopold_beta"],
        switch_step=published["reopold_t_switch"],
    )
    return Case(method, **_aligned_f64(arrays), step=published["global_step"])


def sft(published: dict, arrays: dict) -> Case:
    labels = arrays["labels"][:, 1:]  # the reference shifts inside
    mask = labels != -100
    items = published.get("num_items_in_batch")
    return Case(
        Sft(),
        student_logits=arrays["logits"].astype(np.float64)[:, :-1],
        teachers={},
        targets=labels,
        mask=mask,
        loss=float(arrays["loss"]),
        gradient=arrays["grad_logits"][:, :-1],
        tolerance=2e-6,  # the reference ran in float32
        scale=mask.sum() / items if items else 1.0,
    )


ADAPTERS = {"opsd": opsd, "copsd": opsd, "pwopsd": pwopsd, "eopd": eopd, "reopold": reopold, "sft": sft}
