"""launch/tpu.sh against a stand-in for gcloud that answers in gcloud's words."""

import shlex

import pytest

from tests.launching import REPO, Bench, commands, option

TPU = REPO / "launch/tpu.sh"
WHERE = ("--name=pod", "--zone=us-east5-a", "--project=proj")
KIND = ("--accelerator-type=v5p-128",)
TRAINING = ("--", "--config", "configs/opsd.yaml", "output_dir=/mnt/jopsd/runs/one")
VERBS = ("create", "wait", "install", "run", "logs", "status", "stop", "resume", "delete")

DESCRIBE, NODE = "queued-resources describe", "tpu-vm describe"
CREATE, DELETE, SSH, SCP = "queued-resources create", "queued-resources delete", "tpu-vm ssh", "tpu-vm scp"

QUOTA = """ERROR: (gcloud.compute.tpus.queued-resources.create) HttpError accessing <https://tpu.googleapis.com/v2/projects/\
proj/locations/us-east5-a/queuedResources>: response: <{'status': 429}>, content <{ "error": { "code": 429, "message": \
"Quota limit 'TPUV5PPreemptiblePerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-east5-a.", "status": \
"RESOURCE_EXHAUSTED" } }>
"""
STOCKOUT = (
    'There is no more capacity in the zone "us-east5-a"; you can try in another zone where Cloud TPU Nodes are offered '
    "(see https://cloud.google.com/tpu/docs/regions) [EID: 0xf3bb52b78a15cd16]"
)
USED_UP = "Quota 'TPUV5PPerProjectPerRegionForTPUAPI' exhausted. Limit 8 in region us-east5"
LOGIN = """ERROR: (gcloud.compute.tpus.queued-resources.create) You do not currently have an active account selected.
Please run:

  $ gcloud auth login

to obtain new credentials.
"""
EXPIRED = """ERROR: (gcloud.compute.tpus.queued-resources.create) There was a problem refreshing your current auth \
tokens: Reauthentication failed. cannot prompt during non-interactive execution.
"""
API = """ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Cloud TPU API has not been used in \
project proj before or it is disabled. Enable it by visiting https://console.developers.google.com/apis/api/tpu.googleapis.com/\
overview?project=proj then retry. reason: SERVICE_DISABLED
"""
DENIED = """ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Permission 'tpu.nodes.create' \
denied on 'projects/proj/locations/us-east5-a/nodes/pod'
"""
EXISTS = """ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource 'projects/proj/locations/\
us-east5-a/queuedResources/pod' already exists
"""
NOT_FOUND = """ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'projects/proj/locations/\
us-east5-a/queuedResources/pod' was not found
"""
CONNECTED = "".join(f"SSH: Attempting to connect to worker {w}...\n" for w in range(4))
# One of four workers: ten attempts, then gcloud gives up.
NO_CONNECTION = (
    CONNECTED
    + "ssh: connect to host 34.1.2.3 port 22: Connection timed out\n"
    + 9
    * (
        "Retrying: SSH command error: [/usr/bin/ssh] exited with return code [255].\n"
        "SSH: Attempting to connect to worker 2...\n"
    )
)


def state(name: str, **more) -> dict:
    return {"resource": {"name": "pod", "state": {"state": name, **more}}}


def failed(text: str) -> dict:
    return {"rc": 1, "err": text}


def step(argv: list[str]) -> str:
    """A call in two words, and for ssh what the host is to do."""
    words = " ".join(w for w in argv[1:5] if w not in ("compute", "tpus", "alpha"))
    command = option(argv, "--command") or ""
    name = command.split("host.sh ")[-1].split()[0] if "host.sh" in command else ""
    return " ".join(words.split()[:2]) + (f": {name}" if name else "")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, "gcloud")


# ------------------------------------------------------------------------------------------------------------- dry runs


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_prints_commands_and_calls_nothing(bench, verb):
    done = bench.run(TPU, verb, *WHERE, *KIND, "--dry-run", *TRAINING)
    assert done.returncode == 0, done.stderr
    printed = commands(done.stdout)
    assert printed and all(words[0] in ("gcloud", "git") for words in printed)
    assert bench.calls() == []
    assert not list(bench.folder.glob("*.tar.gz"))


@pytest.mark.parametrize("verb", ["create", "run", "resume"])
def test_a_dry_run_prints_what_the_run_calls(bench, verb):
    bench.play([DESCRIBE, [state("SUSPENDED"), state("ACTIVE")]], [NODE, [{"resource": {"state": "READY"}}]])
    dry = commands(bench.run(TPU, verb, *WHERE, *KIND, "--dry-run", *TRAINING).stdout)
    done = bench.run(TPU, verb, *WHERE, *KIND, *TRAINING)
    assert done.returncode == 0, done.stderr
    asked = [argv for argv in bench.calls() if NODE not in " ".join(argv)]
    assert [words for words in dry if words[0] == "gcloud"] == asked


# --------------------------------------------------------------------------------------------------------------- create


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v6e-32", "v2-alpha-tpuv6e"),
    ],
)
def test_each_generation_gets_its_image(bench, kind, runtime):
    assert bench.run(TPU, "create", *WHERE, "--accelerator-type", kind).returncode == 0
    (argv,) = bench.calls()
    assert option(argv, "--accelerator-type") == kind and option(argv, "--runtime-version") == runtime
    assert option(argv, "--node-id") == "pod" and option(argv, "--zone") == "us-east5-a"
    assert option(argv, "--project") == "proj" and "--quiet" in argv


def test_slices_tier_topology_and_other_flags_are_passed_on(bench):
    more = ("--type=v5p", "--topology=4x4x4", "--slices=2", "--spot", "--create-flag=--network=my net")
    assert bench.run(TPU, "create", *WHERE, *more).returncode == 0
    (argv,) = bench.calls()
    assert argv[1] == "alpha" and option(argv, "--type") == "v5p" and option(argv, "--topology") == "4x4x4"
    assert option(argv, "--node-count") == "2" and option(argv, "--node-prefix") == "pod"
    assert "--spot" in argv and "--network=my net" in argv and option(argv, "--node-id") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", *WHERE], "--accelerator-type"),
        (["create", *WHERE, *KIND, "--type=v5p"], "not both"),
        (["create", *WHERE, "--accelerator-type=tpu7x-8"], "launch/gke.sh"),
        (["create", *WHERE, "--accelerator-type=v9-8"], "--runtime-version"),
        (["create", *WHERE, *KIND, "--spot", "--reserved"], "exclude each other"),
        (["create", *WHERE, *KIND, "--slices=0"], "--slices must be"),
        (["create", *WHERE, *KIND, "--colour=red"], "no option --colour"),
        (["run", *WHERE], "--config"),
        (["run", *WHERE, "--", "--config", "configs/opsd.yaml"], "output_dir 'runs/opsd/own' is not an absolute path"),
        (["run", *WHERE, *TRAINING, "seed"], "'seed' is neither"),
        (["create", "--zone=z", "--project=p", *KIND], "JOPSD_NAME"),
        (["create", "--name=", "--zone=z", "--project=p", *KIND], "--name is empty"),
        (["create", "--name=pod", "--project=p", *KIND], "JOPSD_ZONE"),
        (["create", "--name=pod", "--zone=z", *KIND], "JOPSD_PROJECT"),
        (["create", "--name=Pod 1", "--zone=z", "--project=p", *KIND], "'Pod 1' is no name"),
        (["delete", "--name=", "--zone=z", "--project=p", "--yes"], "--name is empty"),
        (["erase", *WHERE], "create|wait|install"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_anything_is_called(bench, words, message):
    done = bench.run(TPU, *words)
    assert done.returncode != 0 and message in done.stderr
    assert bench.calls() == []


def test_name_zone_and_project_may_come_from_the_environment(bench):
    names = {"JOPSD_NAME": "pod", "JOPSD_ZONE": "z", "JOPSD_PROJECT": "p"}
    assert bench.run(TPU, "create", *KIND, **names).returncode == 0
    (argv,) = bench.calls()
    assert "pod" in argv and option(argv, "--zone") == "z" and option(argv, "--project") == "p"


# ----------------------------------------------------------------------------------------------- what gcloud may answer


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (QUOTA, ["TPUV5PPreemptiblePerProjectPerZoneForTPUAPI", "project proj", "no use", "list --zone=us-east5-a"]),
        (f"ERROR: (gcloud) {{ 'code': 8, 'status': 'RESOURCE_EXHAUSTED', {STOCKOUT} }}\n", ["another zone", "--spot"]),
        (LOGIN, ["gcloud auth login"]),
        (EXPIRED, ["gcloud auth login"]),
        (API, ["services enable tpu.googleapis.com --project=proj"]),
        (DENIED, ["roles/tpu.admin"]),
        (EXISTS, ["there is a pod in us-east5-a already"]),
        ("ERROR: (gcloud) INVALID_ARGUMENT: odd\n", ["INVALID_ARGUMENT: odd"]),
    ],
)
def test_a_refused_request_is_explained_and_not_tried_again(bench, text, messages):
    bench.play([CREATE, [failed(text)]])
    done = bench.run(TPU, "create", *WHERE, *KIND)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and said.startswith("error: ")
    assert all(message in said for message in messages), said
    assert len(bench.calls()) == 1


def test_a_stockout_is_not_taken_for_a_quota(bench):
    bench.play([CREATE, [failed(f'ERROR: (gcloud) {{"code": 8, "message": "{STOCKOUT}", "RESOURCE_EXHAUSTED"}}')]])
    assert "quota" not in bench.run(TPU, "create", *WHERE, *KIND, "--spot").stderr.splitlines()[-1]


def test_a_queued_request_is_waited_for_until_it_is_active(bench):
    states = ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    bench.play([DESCRIBE, [state(name) for name in states]], [NODE, [{"resource": {"state": "READY"}}]])
    done = bench.run(TPU, "wait", *WHERE)
    assert done.returncode == 0
    assert sum(DESCRIBE in " ".join(argv) for argv in bench.calls()) == 4
    assert done.stderr.count("WAITING_FOR_RESOURCES") == 1  # said when it changes


def test_waiting_ends_with_its_time_and_says_that_the_request_stays(bench):
    bench.play([DESCRIBE, [state("WAITING_FOR_RESOURCES")]])
    done = bench.run(TPU, "wait", *WHERE, "--timeout=1", JOPSD_POLL="0.2")
    assert done.returncode == 1 and "stays in the queue" in done.stderr
    assert not any(DELETE in " ".join(argv) for argv in bench.calls())


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([state("FAILED", failedData={"error": {"code": 8, "message": STOCKOUT}})], "another zone"),
        (
            [
                state(
                    "FAILED", failedData={"error": {"message": "Quota 'TPUV5PPerProjectPerRegionForTPUAPI' exhausted."}}
                )
            ],
            "the quota TPUV5PPerProjectPerRegionForTPUAPI",
        ),
        ([state("WAITING_FOR_RESOURCES"), state("SUSPENDED")], "preempted (SUSPENDED); launch/tpu.sh resume"),
        ([failed(NOT_FOUND)], "there is no pod in us-east5-a of project proj"),
        ([failed(LOGIN)], "gcloud auth login"),
    ],
)
def test_waiting_ends_where_nothing_will_come(bench, answers, message):
    bench.play([DESCRIBE, answers])
    done = bench.run(TPU, "wait", *WHERE)
    assert done.returncode == 1 and message in done.stderr
    assert len(bench.calls()) == len(answers)


def test_a_broken_look_at_the_state_is_tried_again_a_few_times(bench):
    broken = failed("ERROR: gcloud crashed (ConnectionError): Remote end closed connection without response\n")
    bench.play([DESCRIBE, [broken, broken, state("ACTIVE")]], [NODE, [{"resource": {"state": "READY"}}]])
    assert bench.run(TPU, "wait", *WHERE).returncode == 0
    bench.play(["nothing", []], [DESCRIBE, [broken]])
    done = bench.run(TPU, "wait", *WHERE)
    assert done.returncode == 1 and "Remote end closed" in done.stderr


def test_hosts_that_are_preempted_count_although_the_request_is_still_active(bench):
    bench.play([DESCRIBE, [state("ACTIVE")]], [NODE, [{"resource": {"state": "PREEMPTED"}}]])
    done = bench.run(TPU, "wait", *WHERE)
    assert done.returncode == 1 and "preempted" in done.stderr


# ------------------------------------------------------------------------------------------------------- resume, delete


@pytest.mark.parametrize("gone", ["SUSPENDED", "FAILED"])
def test_resume_asks_again_for_a_lost_tpu_and_runs_the_same_command(bench, gone):
    bench.play(
        [DESCRIBE, [state(gone), state("WAITING_FOR_RESOURCES"), state("ACTIVE")]],
        [NODE, [{"resource": {"state": "READY"}}]],
    )
    done = bench.run(TPU, "resume", *WHERE, *KIND, "--spot", "--bucket=gs://bucket", *TRAINING)
    assert done.returncode == 0, done.stderr
    assert [step(argv) for argv in bench.calls()] == [
        DESCRIBE,
        DELETE,
        CREATE,
        DESCRIBE,
        DESCRIBE,
        NODE,
        SCP,
        f"{SSH}: install",
        f"{SSH}: mount",
        f"{SSH}: run",
    ]
    create = next(argv for argv in bench.calls() if CREATE in " ".join(argv))
    assert "--spot" in create and option(create, "--accelerator-type") == "v5p-128"
    words = shlex.split(option(bench.calls()[-1], "--command"))
    assert tuple(words[words.index("--") :]) == TRAINING


def test_resume_deletes_nothing_where_the_tpu_is_well(bench):
    bench.play([DESCRIBE, [state("ACTIVE")]], [NODE, [{"resource": {"state": "READY"}}]])
    done = bench.run(TPU, "resume", *WHERE, *KIND, *TRAINING)
    assert done.returncode == 0, done.stderr
    assert [step(argv) for argv in bench.calls()] == [DESCRIBE, NODE, f"{SSH}: run"]


def test_resume_waits_while_the_old_hosts_are_being_taken_away(bench):
    bench.play(
        [DESCRIBE, [state("SUSPENDING"), state("SUSPENDING"), state("SUSPENDED"), state("ACTIVE")]],
        [NODE, [{"resource": {"state": "READY"}}]],
    )
    assert bench.run(TPU, "resume", *WHERE, *KIND, *TRAINING).returncode == 0
    assert [step(argv) for argv in bench.calls()][:5] == [DESCRIBE, DESCRIBE, DESCRIBE, DELETE, CREATE]


def test_delete_wants_the_name_typed_again(bench):
    for typed in ("", "y\n", "pods\n"):
        done = bench.run(TPU, "delete", *WHERE, stdin=typed)
        assert done.returncode == 1 and "nothing was deleted" in done.stderr
    assert bench.calls() == []
    assert bench.run(TPU, "delete", *WHERE, stdin="pod\n").returncode == 0
    assert bench.run(TPU, "delete", *WHERE, "--yes").returncode == 0
    assert [argv[4:6] + argv[-1:] for argv in bench.calls()] == 2 * [["delete", "pod", "--force"]]


# ---------------------------------------------------------------------------------------------------------- connections


def test_a_connection_that_times_out_is_tried_again_on_that_worker_only(bench):
    bench.play([SSH, [{"rc": 255, "err": NO_CONNECTION}, {"rc": 255, "err": NO_CONNECTION}, {"out": "done\n"}]])
    done = bench.run(TPU, "run", *WHERE, *TRAINING)
    assert done.returncode == 0, done.stderr
    assert [option(argv, "--worker") for argv in bench.calls()] == ["all", "2", "2"]
    assert "no connection to worker 2" in done.stderr


def test_tries_are_bounded_and_the_worker_is_named(bench):
    bench.play([SSH, [{"rc": 255, "err": NO_CONNECTION}]])
    done = bench.run(TPU, "run", *WHERE, *TRAINING, JOPSD_TRIES="3")
    assert done.returncode == 1 and "pod: no connection to worker 2 in 3 tries" in done.stderr
    assert len(bench.calls()) == 3


def test_pauses_between_tries_double(bench):
    bench.play([SSH, [{"rc": 255, "err": NO_CONNECTION}]])
    bench.bin.joinpath("sleep").unlink()
    bench.program("sleep", f'#!{bench.bin}/bash\necho "$1" >> {bench.folder}/naps\n')
    bench.run(TPU, "run", *WHERE, *TRAINING, JOPSD_PAUSE="10")
    assert bench.folder.joinpath("naps").read_text().split() == ["10", "20", "40"]


def test_a_command_that_fails_on_a_worker_is_named_and_not_repeated(bench):
    text = CONNECTED + "##### Command execution on worker 3 failed with exit status 1. Continuing.\n"
    bench.play([SSH, [{"rc": 1, "err": text}]])
    done = bench.run(TPU, "run", *WHERE, *TRAINING)
    assert done.returncode == 1 and "the command failed on worker 3 (exit code 1)" in done.stderr
    assert len(bench.calls()) == 1


def test_a_log_that_speaks_of_quotas_is_not_taken_for_gcloud(bench):
    text = f"error: t1v-0: it ended at once: RESOURCE_EXHAUSTED: Out of memory. {QUOTA.removeprefix('ERROR')}\n"
    bench.play([SSH, [{"rc": 1, "err": text}]])
    assert "quota" not in bench.run(TPU, "run", *WHERE, *TRAINING).stderr.splitlines()[-1]


def test_every_slice_is_reached_and_one_that_fails_does_not_keep_the_others(bench):
    bench.play(["ssh pod-1", [{"rc": 1, "err": CONNECTED}]])
    done = bench.run(TPU, "stop", *WHERE, "--slices=3")
    assert done.returncode == 1 and "pod-1: the command failed" in done.stderr
    assert sorted(argv[5] for argv in bench.calls()) == ["pod-0", "pod-1", "pod-2"]


def test_logs_follow_the_first_worker_or_the_one_asked_for(bench):
    bench.run(TPU, "logs", *WHERE)
    bench.run(TPU, "logs", *WHERE, "--worker=3")
    bench.run(TPU, "logs", *WHERE, "--slices=2", "--worker=1/5")
    assert [(argv[5], option(argv, "--worker")) for argv in bench.calls()] == [
        ("pod", "0"),
        ("pod", "3"),
        ("pod-1", "5"),
    ]
