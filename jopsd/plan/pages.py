"""A plan's record as a page for people. Needs no jax, so that a plan from the cache is shown at once."""

from jopsd.plan.topology import GIB


def page(record: dict) -> str:
    """A plan, or the ranking of a sweep and its best plan, as lines of text."""
    return _ranking(record) if record.get("sweep") else _plan(record)


def _ranking(sweep: dict) -> str:
    lines = [
        f"{sweep['tried']} candidates modelled on {sweep['topology']}, the best {len(sweep['plans'])} below",
        "s/step  train  sample  GiB per chip",
    ]
    for plan in sweep["plans"]:
        record = plan["record"]
        memory, how = record["memory"], "compiled" if plan["compiled"] else "estimate"
        lines.append(
            f"{record['seconds']['step']:>6.1f} {memory['train'] / GIB:>6.2f} {memory['sample'] / GIB:>7.2f}  "
            f"{'fits' if memory['fits'] else 'does not fit'} ({how})  {' '.join(plan['overrides'])}"
        )
    return "\n".join([*lines, "", "the first of them:", _plan(sweep["plans"][0]["record"])])


def _plan(record: dict) -> str:
    estimate = "estimate" if record["estimate"] else ""
    lines = [*_head(record), "", *_memory(record, estimate), "", *_network(record, estimate), "", *_time(record), ""]
    if record["memory"]["fits"]:
        lines.append("fits" if not estimate else "fits (estimate: leave a margin)")
    else:
        lines.append(f"does not fit in {_gib(record['memory']['limit'])} per chip")
        if record["memory"]["refused"]:
            lines.append(f"  the compiler: {record['memory']['refused']}")
            lines.append("  of a program that it refused, what is sent and held is an estimate")
    if record["advice"]:
        lines += ["to change:" if not record["memory"]["fits"] else "worth trying:"]
        lines += [f"  {line}" for line in record["advice"]]
    return "\n".join(lines)


def _head(record: dict) -> list[str]:
    model, rows = record["model"], record["rows"]
    slices = f" x {record['slices']} slices" if record["slices"] > 1 and not record["estimate"] else ""
    shape = " x ".join(f"{axis} {size}" for axis, size in record["mesh"].items())
    lines = [
        f"{record['topology']}{slices}: {record['chips']} chips, mesh {shape}",
        f"model: {model['source']}, {model['parameters'] / 1e9:.2f} B parameters, attention {model['attention']}, "
        f"remat {model['remat']}",
        f"{record['method']}, {'all parameters' if record['lora'] is None else 'LoRA of rank ' + str(record['lora'])}; "
        f"{rows['step']} rollouts per step in micro-batches of {rows['micro_batch']}, {rows['updates']} updates",
        f"tokens: {record['lengths']['source']}; every row at full length",
    ]
    if record["sampling_mesh"] is not None:
        shape = " x ".join(f"{axis} {size}" for axis, size in record["sampling_mesh"].items())
        lines.append(f"sampler: {rows['slots']} slots on a mesh of {shape}")
    if record["estimate"]:
        lines.append("no compiler for this chip here: every number below is an estimate from a model of the programs")
    return lines


def _memory(record: dict, mark: str) -> list[str]:
    memory = record["memory"]
    rows = [(name, size) for name, size in memory["parts"].items() if size]
    lines = ["per chip, GiB"]
    lines += [f"  {name:<34}{size / GIB:>9.3f}  {mark}".rstrip() for name, size in rows]
    for name, doing in (("train", "training"), ("sample", "sampling")):
        if memory[name]:
            share = f"{memory[name] / memory['limit']:.0%} of {_gib(memory['limit'])}"
            lines.append(f"  {'most at once, ' + doing:<34}{memory[name] / GIB:>9.3f}  {share}  {mark}".rstrip())
    if memory["train_peak"]:
        lines.append(f"  {'  alive at once by XLA, training':<34}{memory['train_peak'] / GIB:>9.3f}")
    return lines


def _network(record: dict, mark: str) -> list[str]:
    lines = ["sent per chip, GB per run"]
    for program, table in record["sent_per_device"].items():
        for line in table:
            if line["bytes"] >= 1e6:
                axes = "+".join(line["axes"]) or "all"
                link = {"ici": "within", "dcn": "between slices"}[line["link"]]
                lines.append(
                    f"  {program:<9}{line['kind']:<20}{axes:<18}{link:<16}{line['bytes'] / 1e9:>9.3f}  {mark}".rstrip()
                )
    return lines if len(lines) > 1 else ["sent per chip: less than a MB per run"]


def _time(record: dict) -> list[str]:
    seconds, flops, price = record["seconds"], record["flops_per_device"], record["price"]
    lines = ["a step, seconds (roofline)   compute      HBM  network  between   floor"]
    for name in ("training", "sampling"):
        part = seconds[name]
        numbers = " ".join(f"{part[key]:>8.2f}" for key in ("compute", "hbm", "ici", "dcn"))
        lines.append(f"  {name:<24}{numbers} {part['floor']:>8.2f}  waits for {part['bound']}")
    trained, drawn = flops["update"] + flops["score"], flops["decode"] + flops["prefill"]
    lines += [
        f"  FLOPs per chip: training {trained:.3e}, sampling {drawn:.3e}",
        f"  at {seconds['efficiency']:.0%} of these rates: {seconds['step']:.1f} s per step, "
        f"{record['tokens_per_second']:,.0f} completion tokens/s",
        f"  1,000 steps: {price['dollars_per_1000_steps']:,.0f} dollars at {price['dollars_per_chip_hour']:g} per chip "
        f"and hour ({price['table']}); an estimate",
    ]
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
