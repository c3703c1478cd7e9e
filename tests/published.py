"""What the repositories of the papers run with, typed from their launchers, by the config that must resolve to it.

Each row: (file under configs/, overrides, {dotted key: value}). Test data only; nothing here reads a config.
"""

OFF = {"lora": None}
ADAM = {"optimizer.b1": 0.9, "optimizer.b2": 0.999, "optimizer.eps": 1e-8}


def _rollouts(n, tokens, temperature, top_p=1.0, top_k=0):
    keys = ("n", "max_new_tokens", "temperature", "top_p", "top_k")
    return {f"sampling.{key}": value for key, value in zip(keys, (n, tokens, temperature, top_p, top_k), strict=True)}


def _adamw(rate, schedule, warmup, decay, clip):
    keys = ("learning_rate", "schedule", "warmup_steps", "weight_decay", "clip_norm")
    values = (rate, schedule, warmup, decay, clip)
    return ADAM | {f"optimizer.{key}": value for key, value in zip(keys, values, strict=True)}


def _length(batch, mini=None, steps=None, epochs=None):
    return {
        "train.batch_size": batch,
        "train.mini_batch_size": mini,
        "train.passes": 1,
        "train.steps": steps,
        "train.epochs": epochs,
    }


def _under(section, **keys):
    return {f"{section}.{key}": value for key, value in keys.items()}


def _correction(level, threshold):
    return _under("method.correction", mode="weights", level=level, threshold=threshold)


def _evaluation(every, samples, thinking, tokens, temperature, top_p, top_k=0, **data):
    given = {"every": every, "samples": samples, "thinking": thinking, "max_new_tokens": tokens}
    given |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    return _under("eval", **given) | _under("eval.data", **data)


# ------------------------------------------------------------------------- OPSD, PW-OPSD and COPSD (linear, no warm-up)

FAMILY = {
    "seed": 42,
    "model.dtype": "bfloat16",
    "lora.rank": 64,
    "lora.alpha": 128.0,
    "lora.targets": ["q", "k", "v", "o", "gate", "up", "down"],
    "reward": None,
    "eval": None,
    "data.max_prompt_tokens": 20000,
    "data.on_long_prompt": "skip",
}
FIXED = {"teacher.kind": "fixed"}
OPENTHOUGHTS = {"data.source": "siyanzhao/Openthoughts_math_30k_opsd"}
CLIPPED_KL = _under("method", name="opsd", alpha=0.0, entry_clip=0.05, loss="full", temperature=1.1, top_k=None)


def _opsd():
    jsd = _under("method", name="opsd", alpha=0.5, entry_clip=None, loss="full", top_k=None, temperature=1.1)
    shared = FAMILY | OPENTHOUGHTS | {"model.path": "models/Qwen3-4B", "student.thinking": None} | FIXED
    shared |= {"teacher.thinking": None, "context.name": "solution", "context.privileged": "solution"}
    shared |= _adamw(2e-4, "linear", 0, 0.0, 1.0) | {"checkpoint.every": 50, "checkpoint.keep": 10, "log.every": 2}
    dense = shared | jsd | _rollouts(1, 1024, 1.1, 0.95, 20) | _length(32, epochs=30)
    yield "opsd/qwen3_4b", dense
    yield "opsd/qwen3_1_7b", dense | {"model.path": "models/Qwen3-1.7B", "sampling.max_new_tokens": 2048}
    average = _under("teacher", kind="ema", decay=0.999, start="first_update", every=1)
    yield "opsd/qwen3_4b_ema", dense | {"train.batch_size": 8} | average
    top = _under("method", loss="topk", top_k=50, tail=False)
    yield "opsd/qwen3_4b_top_k", dense | {"train.batch_size": 8} | top
    grpo = _under("method", name="grpo", kl_coef=0.0, clip_low=0.2, clip_high=0.2, dual_clip=None, temperature=1.2)
    grpo |= _under("method", normalize_std=True, std_eps=1e-4, reduction="sequence_mean")
    grpo |= _correction("sequence", [0.0, 3.0]) | {"reward": ..., "reward.name": "math", "log.every": 10}
    grpo |= _rollouts(8, 16000, 1.2) | {"optimizer.learning_rate": 2e-5} | _length(4, epochs=2)
    yield "opsd/qwen3_4b_grpo", shared | grpo | _under("data.columns", problem="Question", answer="Answer")
    sft = OFF | _under("method", name="sft", tokens="all", reduction="token_mean") | _length(64, epochs=4)
    sft |= {"optimizer.learning_rate": 2e-5, "checkpoint.every": 100, "log.every": 5}
    sft |= _rollouts(1, 16000, 1.1, 0.95, 20)  # it does not sample; the rest is inherited
    yield "opsd/qwen3_4b_sft", _without_lora(shared) | sft | {"data.columns.problem": "Question"}


def _without_lora(values):
    return {key: value for key, value in values.items() if not key.startswith("lora.")}


PWOPSD_METHODS = {
    "opsd": CLIPPED_KL | {"method.reduction": "token_mean"},
    "eopd": _under("method", name="eopd", entropy_threshold=0.8, top_k=16, clip=0.2, temperature=1.1),
    "pwopsd": CLIPPED_KL | _under("method", name="pwopsd", w_min=0.25, tau=0.3, s=0.1, reduction="sequence_mean"),
    "reopold": _under("method", name="reopold", mix=0.1, keep=0.2, switch_step=50, temperature=1.1),
}
PWOPSD_MODELS = {
    "qwen3_4b": "models/Qwen3-4B",
    "dsr1_llama_8b": "models/DeepSeek-R1-Distill-Llama-8B",
    "olmo3_7b_think": "models/Olmo-3-7B-Think",
}


def _pwopsd():
    shared = FAMILY | OPENTHOUGHTS | FIXED | _adamw(5e-6, "linear", 0, 0.0, 0.1) | _length(32, steps=150)
    shared |= {"student.thinking": False, "student.close_think": True, "teacher.thinking": True}
    shared |= {"teacher.close_think": False, "checkpoint.every": 25, "checkpoint.keep": None, "log.every": 2}
    shared |= {"context.name": "solution"} | _rollouts(1, 1024, 1.1, 0.95, 20)
    for model, path in PWOPSD_MODELS.items():
        for method, keys in PWOPSD_METHODS.items():
            yield f"pwopsd/{model}/{method}", shared | {"model.path": path} | keys
    cell = shared | {"model.path": PWOPSD_MODELS["qwen3_4b"]} | PWOPSD_METHODS["pwopsd"]
    yield "pwopsd/qwen3_4b/pwopsd_flat", cell | {"method.w_min": 1.0}
    yield "pwopsd/qwen3_4b/pwopsd_token_mean", cell | {"method.reduction": "token_mean"}


AFRIMGSM = "amh ewe hau ibo kin lin lug orm sna sot swa twi vai wol xho yor zul".split()
POLYMATH = "bn sw te th zh es ru ja".split()


def _copsd():
    shared = FAMILY | FIXED | CLIPPED_KL | _adamw(5e-6, "linear", 0, 0.0, 0.1) | _length(32, steps=100)
    shared |= _rollouts(1, 2048, 1.1, 0.95, 20) | {"student.thinking": True, "teacher.thinking": True}
    shared |= _under("context", name="crosslingual", include_problem_en=True, include_solution_en=True)
    shared |= _under("context", think_prefix=True, label_student=True, name_language=True)
    shared |= {"checkpoint.every": 5, "checkpoint.keep": None, "log.every": 2, "data.on_bad_row": "skip"}
    models = {"qwen3_1_7b": "models/Qwen3-1.7B", "qwen3_4b": "models/Qwen3-4B", "qwen3_8b": "models/Qwen3-8B"}
    runs = [(m, "afrimgsm", lang, f"translated_{lang}.json") for m in models for lang in AFRIMGSM]
    runs += [("qwen3_4b", "polymath", lang, f"translated_3000_{lang}.json") for lang in POLYMATH]
    for model, rows, lang, file in runs:
        source = f"data/copsd/{rows}/{file}"
        language = {"data.source": source, "data.columns.problem": f"problem_{lang}"}
        overrides = [f"{key}={value}" for key, value in language.items()]
        yield f"copsd/{model}_{rows}", shared | {"model.path": models[model]} | language, overrides
    # As they stand, without overrides.
    swahili = {"data.columns.problem": "problem_swa", "data.source": "data/copsd/afrimgsm/translated_swa.json"}
    for model, path in models.items():
        yield f"copsd/{model}_afrimgsm", shared | swahili | {"model.path": path}
    polymath = {"data.columns.problem": "problem_sw", "data.source": "data/copsd/polymath/translated_3000_sw.json"}
    yield "copsd/qwen3_4b_polymath", shared | polymath | {"model.path": "models/Qwen3-4B"}
    grpo = _under("method", name="grpo", clip_low=0.2, clip_high=0.2, kl_coef=0.0, dual_clip=None, std_eps=1e-4)
    grpo |= _under("method", temperature=1.0, normalize_std=True, reduction="token_mean", correction=None)
    grpo |= _rollouts(8, 256, 1.0) | {"optimizer.learning_rate": 1e-6, "optimizer.clip_norm": 1.0}
    grpo |= {"train.batch_size": 4, "context.label_student": False, "reward": ..., "reward.name": "math"}
    chassis = {key: value for key, value in shared.items() if not key.startswith("method.")}
    yield "copsd/qwen3_4b_grpo", chassis | swahili | {"model.path": "models/Qwen3-4B"} | grpo


# ---------------------------------------------------------------------------------------------------------------- RLCSD

DENSE = _under("method", alpha=0.0, entry_clip=0.05, loss="topk", top_k=100, tail=True)
SOFT = _under("method", alpha=0.5, is_clip=2.0, loss="topk", top_k=100, tail=True, entry_clip=None)
SNAPSHOT = _under("teacher", kind="snapshot", every=10)
AVERAGE = _under("teacher", kind="ema", decay=0.95, every=1, start="initial")
PPO = _under("method", clip_low=0.2, clip_high=0.2, normalize_std=True, std_eps=1e-6)
RLSD = PPO | _under("method", epsilon_w=0.2, lam=0.5, lam_decay_steps=50, dual_clip=None) | SNAPSHOT
SOLUTION = _under("context", name="solution", privileged="solution_answer", wording="neutral")
HINTS = _under("context", name="hints", source="self_rollout", privileged="solution_answer", wording="neutral")
RLCSD_ALGORITHMS = {
    "grpo": PPO | SOLUTION | _under("method", name="grpo", kl_coef=0.001, kl_estimator="k3", dual_clip=3.0),
    "opsd": DENSE | FIXED | SOLUTION | {"method.name": "opsd", "optimizer.clip_norm": 0.1},
    "sdpo": SOFT | AVERAGE | SOLUTION | {"method.name": "sdpo"},
    "srpo": SOFT | PPO | AVERAGE | SOLUTION | _under("method", name="srpo", beta=1.0, dual_clip=3.0, kl_coef=0.0),
    "rlsd": RLSD | SOLUTION | _under("method", name="rlsd", kl_coef=0.0),
    "rlcsd": PPO
    | SNAPSHOT
    | HINTS
    | _under("method", name="rlcsd", tau=0.02, beta=1.0, lam=0.5, delta=0.02, eta=1.0, kl_coef=0.0, dual_clip=None)
    | _under("method", residual_low=-2.0, residual_high=2.0)
    | {"context.negatives": 4},
    "opsd_ectr": DENSE
    | FIXED
    | HINTS
    | _under("method", name="opsd_ectr", guidance=0.5, log_floor=-5.0, tau=1.0, kl_coef=0.001)
    | {"context.negatives": 1, "optimizer.clip_norm": 0.1},
    "rlsd_ectr": RLSD | HINTS | _under("method", name="rlsd_ectr", kl_coef=0.001) | {"context.negatives": 1},
}
RLCSD_MODELS = {
    "qwen3_1_7b": ("models/Qwen3-1.7B", "deepmath_filtered_level5_7"),
    "qwen3_4b": ("models/Qwen3-4B", "deepmath_filtered_level6_8"),
    "qwen3_8b": ("models/Qwen3-8B", "deepmath_filtered_level7_10"),
    "olmo3_7b_think": ("models/Olmo-3-7B-Think", "deepmath_filtered_level7_10"),
}


def _rlcsd():
    shared = OFF | _adamw(1e-6, "constant", 50, 0.01, 1.0) | _length(64, mini=16, epochs=30)
    shared |= _rollouts(8, 16384, 1.0, 0.95, 20) | _correction("token", 2.0) | {"method.temperature": 1.0}
    shared |= {"method.reduction": "token_mean", "student.thinking": True, "teacher.thinking": True}
    shared |= {"data.limit": 60000, "data.max_prompt_tokens": 2048, "data.on_long_prompt": "skip"}
    shared |= {"checkpoint.every": 50, "reward.name": "math"} | {"teacher.max_prompt_tokens": 40960 - 16384}
    tasks = {"math": ("data/verl/math_eval", 12), "logic": ("data/verl/logic_eval", 1)}
    for task, (held_out, samples) in tasks.items():
        evaluation = _evaluation(50, samples, True, 38912, 0.6, 0.95, 20, source=held_out)
        for model, (path, rows) in RLCSD_MODELS.items():
            rows = rows if task == "math" else "kk_4to8"
            run = shared | evaluation | {"model.path": path, "data.source": f"data/verl/{rows}/train.parquet"}
            run |= {"context.student_template": "{problem}", "reward.name": "knights"} if task == "logic" else {}
            for name, algorithm in RLCSD_ALGORITHMS.items():
                if name.endswith("_ectr") and model != "qwen3_4b":
                    continue
                small = task == "logic" and model == "qwen3_4b" and name in ("sdpo", "srpo")
                budget = {"teacher.max_prompt_tokens": 32768 - 16384} if small else {}
                yield f"rlcsd/{task}/{model}/{name}", run | algorithm | budget


# ----------------------------------------------------------------------------------------------------------- SDPO, MOPD

SDPO = _under("method", name="sdpo", alpha=0.5, loss="topk", top_k=100, tail=True, is_clip=2.0, step_separator=None)
PEERS = _under("context", name="peers", wording="bare", success_threshold=0.5, exclude_self=True, remove_thinking=True)
PEERS |= _under(
    "context", primary=True, another=False, failure=False, feedback=True, summaries=None, failure_alone=False
)
PEERS |= _under("context", feedback_only_without_solution=True)
SDPO |= PEERS | AVERAGE | {"teacher.max_prompt_tokens": 10240}
SDPO_GRPO = _under("method", name="grpo", normalize_std=False, clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=0.0)
SDPO_GRPO |= _under("context", name="plain", wording="bare")
CONTRASTIVE = _under("context", peers="contrastive", failure=True, failure_condition="always")


def _lengths(prompt, response):
    limits = {"data.max_prompt_tokens": prompt, "sampling.max_new_tokens": response}
    return limits | {"eval.data.max_prompt_tokens": prompt, "eval.max_new_tokens": response}


def _rows(name):
    reward = {"tooluse": "tools", "lcb_v6": "code"}.get(name, "choice")
    sources = {"data.source": f"data/sdpo/{name}/train.parquet", "eval.data.source": f"data/sdpo/{name}/test.parquet"}
    return sources | {"reward.name": reward}


def _sdpo_chassis():
    shared = OFF | _adamw(1e-5, "constant", 10, 0.0, 1.0) | _length(32, mini=32, epochs=30)
    shared |= _rollouts(8, 8192, 1.0) | _correction("token", 2.0) | {"method.temperature": 1.0}
    shared |= {"method.reduction": "sequence_mean", "student.thinking": False, "teacher.thinking": False}
    shared |= {"data.columns.problem": "prompt", "eval.data.columns.problem": "prompt", "data.on_long_prompt": "skip"}
    return shared | _evaluation(5, 16, False, 8192, 0.6, 0.95) | _lengths(2048, 8192)


def _sdpo():
    shared = _sdpo_chassis()
    biology = _rows("sciknoweval/biology")
    silent = SDPO | {"context.feedback": False}
    methods = {
        "sdpo": silent,
        "mopd_positive": silent | {"context.peers": "positive", "context.another": True},
        "mopd_contrastive": silent | CONTRASTIVE,
        "grpo": SDPO_GRPO,
    }
    for model, path in (("qwen3_8b", "models/Qwen3-8B"), ("olmo3_7b_instruct", "models/Olmo-3-7B-Instruct")):
        run = shared | {"model.path": path}
        for name, method in methods.items():
            yield f"sdpo/{model}/{name}", run | biology | method
            for rows in ("sciknoweval/chemistry", "sciknoweval/material", "sciknoweval/physics", "tooluse"):
                overrides = [f"{key}={value}" for key, value in _rows(rows).items() if biology[key] != value]
                yield f"sdpo/{model}/{name}", run | _rows(rows) | method, overrides
        for mini, rate in ((8, 1e-5), (8, 1e-6), (32, 1e-6)):
            point = {"train.mini_batch_size": mini, "optimizer.learning_rate": rate}
            yield f"sdpo/{model}/grpo", run | biology | SDPO_GRPO | point, [f"{k}={v}" for k, v in point.items()]
    rich = shared | {"model.path": "models/Qwen3-8B", "eval.samples": 4} | _rows("lcb_v6")
    rich |= {"optimizer.learning_rate": 1e-6, "optimizer.warmup_steps": 0, "reward.code.feedback": "all"}
    moves = {"teacher.decay": 1 - 0.01, "teacher.every": 32, "train.mini_batch_size": 1}
    yield "sdpo/rich_feedback/sdpo", rich | SDPO | moves | {"method.alpha": 1.0, "method.top_k": 20}
    yield "sdpo/rich_feedback/grpo", rich | SDPO_GRPO | {"train.mini_batch_size": 8}
    yield "sdpo/run_local", shared | SDPO | {"model.path": "models/Qwen2.5-7B-Instruct"} | _rows("tooluse")


def _mopd():
    shared = _sdpo_chassis() | {"eval.samples": 8}
    small = {"model.path": "models/Qwen2.5-3B-Instruct"}
    frozen = {key: value for key, value in SDPO.items() if key not in AVERAGE} | {"teacher.kind": "external"}
    thinks = {"student.thinking": True, "teacher.thinking": True, "eval.thinking": True, "checkpoint.every": 50}
    local = shared | SDPO | CONTRASTIVE | thinks | _rows("sciknoweval/chemistry") | _lengths(4096, 8192)
    yield "mopd/run_local_sdpo", local | {"model.path": "models/Qwen3-4B"}
    larger = frozen | {"teacher.path": "models/Qwen2.5-7B-Instruct", "sampling.n": 2} | _length(4, mini=4, epochs=30)
    yield "mopd/ts_sdpo", shared | small | larger | _rows("sciknoweval/biology")
    yield "mopd/run_local_grpo", shared | small | SDPO_GRPO | _rows("lcb_v6")
    step = SDPO | {"method.step_separator": "\n\n", "sampling.n": 2, "eval.samples": 16} | _length(8, mini=8, epochs=30)
    yield "mopd/run_local_step", shared | small | step | _rows("sciknoweval/biology") | _lengths(512, 512)
    job = shared | {"sampling.n": 4} | _rows("sciknoweval/biology") | _lengths(1024, 4096)
    summaries = _under("context.summaries", k=1, tag="summary", source="success")
    told = {key: value for key, value in SDPO.items() if key != "context.summaries"} | summaries
    yield "mopd/cluster/summaries", job | told | {"model.path": "models/Qwen3-8B"}
    pair = {"model.path": "models/Qwen3-4B-Instruct-2507", "teacher.path": "models/Qwen3-8B"}
    yield "mopd/cluster/ts_sdpo", job | frozen | pair
    slow = {"model.path": "models/Qwen3-14B", "teacher.decay": 1 - 0.01} | _lengths(1024, 1024)
    yield "mopd/cluster/qwen3_14b", job | SDPO | slow


# ---------------------------------------------------------------------------------------------------------------- G-OPD


def _mix(*sources: str) -> list[dict]:
    whole = {
        "split": "train",
        "subset": None,
        "columns": {},
        "limit": None,
        "seed": 0,
        "difficulty": None,
        "verifier": None,
    }
    return [{"source": source, **whole, "weight": 1.0} for source in sources]


def _gopd():
    shared = OFF | {"seed": 42} | _adamw(1e-5, "constant", 0, 0.01, 1.0) | _length(1024, epochs=3)
    shared |= _rollouts(1, 16384, 1.0) | _correction("token", 5.0) | {"checkpoint.every": 50, "reward.name": "math"}
    shared |= _under("method", name="opd", kl_coef=0.0, clip_low=0.2, clip_high=0.2, dual_clip=3.0, temperature=1.0)
    shared |= {"method.reduction": "sequence_mean", "student.thinking": False, "teacher.thinking": False}
    shared |= {"data.max_prompt_tokens": 2048, "data.on_long_prompt": "skip", "reference.path": None}
    shared |= _under("context", name="plain", wording="gopd")
    shared |= _evaluation(10, 32, False, 16384, 1.0, 1.0, source="data/gopd/aime")
    math = "models/Qwen3-4B-Non-Thinking-RL-Math"
    opd = shared | {"model.path": "models/Qwen3-1.7B", "data.source": "data/gopd/deepmath_level6.parquet"}
    opd |= _under("teacher", kind="external", path=math) | {"method.lam": 1.0}
    yield "gopd/opd", opd
    yield "gopd/exopd", opd | {"method.lam": 1.25}
    larger = shared | {"model.path": "models/Qwen3-4B"}
    two = _under("teacher", kind="external", path=None) | {"teacher.models.math": math, "method.lam": 1.25}
    two |= {"teacher.models.code": "models/Qwen3-4B-Non-Thinking-RL-Code", "eval.samples": 1, "eval.data.source": None}
    two |= {"eval.data.mix": _mix("data/gopd/aime", "data/gopd/Eurus/code_validation.parquet"), "reward.name": "auto"}
    yield "gopd/multi_teacher", larger | two | {"data.source": "data/gopd/math_and_code.parquet"}
    told = FIXED | _under("context", name="solution", privileged="solution") | {"sampling.n": 8, "method.lam": 1.0}
    told |= _length(128, epochs=1) | {"data.source": "data/gopd/deepmath_level6_with_solution.parquet"}
    yield "gopd/context_distillation", larger | told


def rows():
    """All of them, as (path under configs/, overrides, values)."""
    for table in (_opsd, _pwopsd, _copsd, _rlcsd, _sdpo, _mopd, _gopd):
        for name, values, *overrides in table():
            yield f"{name}.yaml", tuple(overrides[0]) if overrides else (), values
