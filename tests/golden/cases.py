"""How each method's golden arrays and published hyper-parameters map onto ours. One function per method."""

from typing import NamedTuple

import numpy as np

from jopsd.methods import Eopd, Grpo, Method, Opsd, PwOpsd, Reopold, Sft


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
    batch: dict | None = None  # further fields of the TrainBatch


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


def grpo(published: dict, arrays: dict) -> Case:
    return _grpo_of_logprobs(published, arrays) if "per_token_logps" in arrays else _grpo_of_logits(published, arrays)


def _grpo_of_logits(published: dict, arrays: dict) -> Case:
    level, threshold = published["rollout_is"], published["rollout_is_threshold"]
    if isinstance(threshold, str):
        threshold = tuple(float(bound) for bound in threshold.split("_"))
    kinds = {"low_var_kl": "k3", "mse": "k2", "kl": "k1"}
    method = Grpo(
        normalize_std=published["norm_adv_by_std"],
        std_eps=published["adv_epsilon"],
        clip_low=published["clip_low"],
        clip_high=published["clip_high"],
        dual_clip=published["clip_ratio_c"],
        kl_coef=published.get("kl_loss_coef", 0.0),
        kl_estimator=kinds[published.get("kl_loss_type", "low_var_kl")],
        correction=level
        and {"level": level, "threshold": threshold, "batch_normalize": published["rollout_is_batch_normalize"]},
        reduction=REDUCTIONS[published["agg"]],
    )
    batch = {"reward": arrays["rewards"], "group": arrays["uids"], "sampler_logprobs": arrays.get("rollout_log_probs")}
    if not published["on_policy"]:
        batch["old_logprobs"] = arrays["old_log_prob"]
    targets, teachers = arrays["responses"], {}
    if "ref_log_prob" in arrays:
        teachers["reference"] = _logits_with(arrays["ref_log_prob"], targets, arrays["student_logits"].shape[-1])
    return Case(
        method,
        student_logits=arrays["student_logits"],
        teachers=teachers,
        targets=targets,
        mask=arrays["response_mask"] != 0,
        loss=float(arrays["loss"]),
        gradient=arrays["grad_student_logits"],
        batch=batch,
    )


def _grpo_of_logprobs(published: dict, arrays: dict) -> Case:
    """TRL's loss, given log-probabilities: on a vocabulary of two, where token 0 was sampled."""
    logprobs, mask = arrays["per_token_logps"].astype(np.float64), arrays["completion_mask"] != 0
    old = arrays["old_per_token_logps"].astype(np.float64)
    targets = np.zeros(mask.shape, np.int32)
    batch = {"reward": arrays["advantages"], "group": np.arange(len(mask)), "old_logprobs": old}
    options, teachers = {"kl_coef": published.get("beta", 0.0)}, {}
    if "importance_sampling_ratio" in arrays:  # zeroed above 3
        ratio = arrays["importance_sampling_ratio"].astype(np.float64)
        gap = np.log(np.where(ratio > 0, ratio, 10.0)) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
        batch["sampler_logprobs"] = old - gap
        options["correction"] = {"level": "sequence", "threshold": (0.0, 3.0)}
    if "ref_per_token_logps" in arrays:
        teachers["reference"] = _logits_with(arrays["ref_per_token_logps"].astype(np.float64), targets, 2)
    by_logprob = arrays["grad_per_token_logps"].astype(np.float64)[..., None]
    return Case(
        # Each row is a group of its own and its reward the stored advantage, which comes out unchanged.
        Grpo(normalize_std=False, dual_clip=None, reduction="sequence_mean", **options),
        student_logits=_logits_with(logprobs, targets, 2),
        teachers=teachers,
        targets=targets,
        mask=mask,
        loss=float(arrays["loss"]),
        gradient=by_logprob * (np.array([1.0, 0.0]) - np.exp(_logits_with(logprobs, targets, 2))),
        tolerance=1e-9 if arrays["per_token_logps"].dtype == np.float64 else 1e-6,
        scale=1 / published.get("gradient_accumulation_steps", 1),
        batch=batch,
    )


REDUCTIONS = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "sequence_sum_norm",
}


def _logits_with(logprobs: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Logits [B,T,size] whose softmax gives the targets these log-probabilities and shares the rest equally."""
    rest = np.log(-np.expm1(np.minimum(logprobs, -1e-12))) - np.log(size - 1)
    chosen = np.arange(size) == np.maximum(targets, 0)[..., None]
    return np.where(chosen, logprobs[..., None], rest[..., None])


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


ADAPTERS = {"opsd": opsd, "copsd": opsd, "pwopsd": pwopsd, "eopd": eopd, "reopold": reopold, "grpo": grpo, "sft": sft}
