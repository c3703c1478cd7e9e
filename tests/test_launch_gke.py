"""launch/gke.sh and launch/xpk.sh: manifests parse and say what they should, and nothing is called unasked."""

import json
import re
import shlex

import pytest
import yaml

from tests.launching import AWKWARD, REPO, Bench, commands, option

GKE, XPK = REPO / "launch/gke.sh", REPO / "launch/xpk.sh"
TRAINING = ("--config", "configs/opsd.yaml", "output_dir=/mnt/jopsd/runs/one")
IMAGE = "--image=region-docker.pkg.example/p/jopsd:1"
SLICE = ("--tpu=tpu-v5p-slice", "--topology=4x4x4", IMAGE)
GPUS = ("--gpu=nvidia-h100-80gb", "--hosts=4", IMAGE)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, "kubectl", "xpk")


# ----------------------------------------------------------------------------------------------------------- Kubernetes


def rendered(bench, *options: str, training=TRAINING) -> dict:
    done = bench.run(GKE, "render", "--name=one", *options, "--", *training)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"@[A-Z_]+@|# only:", re.sub(r"args: .*", "", done.stdout).split("apiVersion", 1)[1])
    return yaml.safe_load(done.stdout)


def parts(manifest: dict) -> tuple[dict, dict, dict, dict]:
    """The replicated job, its job, the pod's spec and the container's."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return replicated, job, pod, container


def expanded(argument: str) -> str:
    """What Kubernetes makes of an argument in which no $(NAME) is known."""
    return re.sub(r"\$\$", "$", argument)


@pytest.mark.parametrize("options", [SLICE, GPUS], ids=["tpu", "gpu"])
def test_a_manifest_restarts_all_hosts_together_and_leaves_time_to_save(bench, options):
    manifest = rendered(bench, *options, "--claim=disk", "--restarts=3")
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "one" and manifest["metadata"]["namespace"] == "default"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True  # JobSet then makes a headless service
    _, job, pod, container = parts(manifest)
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert job["parallelism"] == job["completions"]
    assert pod["terminationGracePeriodSeconds"] == 300
    assert container["command"] == ["/app/launch/container.sh"] and container["args"] == list(TRAINING)
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/jopsd"}]
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}}]


@pytest.mark.parametrize(
    ("topology", "more", "slices", "hosts", "chips"),
    [
        ("4x4x4", (), 1, 16, 4),
        ("4x4x4", ("--slices=2",), 2, 16, 4),
        ("2x2", (), 1, 1, 4),
        ("1x1", (), 1, 1, 1),
        ("2x4", ("--chips-per-host=8",), 1, 1, 8),
        ("4x8", (), 1, 8, 4),
    ],
)
def test_a_slice_has_the_hosts_of_its_topology_and_all_chips_of_each(bench, topology, more, slices, hosts, chips):
    options = ("--tpu=tpu-v6e-slice", f"--topology={topology}", IMAGE, "--claim=disk", *more)
    replicated, job, pod, container = parts(rendered(bench, *options))
    assert (replicated["replicas"], job["parallelism"]) == (slices, hosts)
    assert container["resources"] == {key: {"google.com/tpu": chips} for key in ("requests", "limits")}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert not [entry for entry in container["env"] if "COORDINATOR" in entry["name"]]  # JAX sees it


def test_slices_get_a_node_pool_each(bench):
    annotations = rendered(bench, *SLICE, "--slices=2", "--claim=disk")["metadata"]["annotations"]
    assert annotations == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}


def test_gpu_hosts_find_the_first_pod_and_know_their_number(bench):
    manifest = rendered(bench, *GPUS, "--claim=disk")
    replicated, job, pod, container = parts(manifest)
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    # JobSet's names: <jobset>-<replicated job>-<job>-<pod>.<jobset>
    assert environment["JOPSD_COORDINATOR"] == f"one-{replicated['name']}-0-0.one:8476"
    assert environment["JOPSD_PROCESSES"] == "4" == str(job["completions"])
    (process,) = [entry for entry in container["env"] if entry["name"] == "JOPSD_PROCESS"]
    field = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert process["valueFrom"] == {"fieldRef": {"fieldPath": field}}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    (term,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    labels = job["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("options", [SLICE, GPUS], ids=["tpu", "gpu"])
def test_options_add_their_lines(bench, options):
    more = ("--bucket=gs://b", "--spot", "--queue=q", "--service-account=s", "--secret=hf", "--namespace=n")
    manifest = rendered(bench, *options, *more)
    _, job, pod, container = parts(manifest)
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert manifest["metadata"]["namespace"] == "n"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert any(t["key"] == "cloud.google.com/gke-spot" for t in pod["tolerations"])
    assert pod["serviceAccountName"] == "s" and container["envFrom"] == [{"secretRef": {"name": "hf"}}]
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (volume,) = pod["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "b"
    assert "rename-dir-limit" in volume["csi"]["volumeAttributes"]["mountOptions"]


def test_arguments_reach_the_container_as_they_are(bench):
    _, _, _, container = parts(rendered(bench, *SLICE, "--claim=disk", training=(*TRAINING, *AWKWARD)))
    assert [expanded(argument) for argument in container["args"]] == [*TRAINING, *AWKWARD]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("apply", *SLICE, "--claim=d", "--", *TRAINING), "JOPSD_CONTEXT"),
        (("apply", "--context=c", "--claim=d", IMAGE, "--", *TRAINING), "which hosts?"),
        (("render", *SLICE, *GPUS, "--claim=d", "--", *TRAINING), "--tpu and --gpu exclude each other"),
        (("render", *SLICE, "--", *TRAINING), "no shared disk"),
        (("render", *SLICE, "--claim=d", "--bucket=b", "--", *TRAINING), "exclude each other"),
        (
            ("render", *SLICE[1:], "--tpu=t", "--topology=4by4", "--claim=d", "--", *TRAINING),
            "'4by4' is not",
        ),
        (("render", *SLICE, "--topology=3x3", "--claim=d", "--", *TRAINING), "9 chips"),
        (("render", *GPUS, "--slices=2", "--claim=d", "--", *TRAINING), "--hosts"),
        (("render", *SLICE, "--claim=d", "--", *TRAINING[:2], "output_dir=/tmp/x"), "not on the shared disk"),
        (("delete", "--context=c", "--name="), "--name is empty"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_kubectl_is_called(bench, words, message):
    named = () if "--name=" in words else ("--name=one",)
    done = bench.run(GKE, words[0], *named, *words[1:])
    assert done.returncode == 1 and message in done.stderr
    assert bench.calls() == []


def test_apply_sends_what_render_shows_to_the_cluster_that_is_named(bench):
    options = ("--name=one", *SLICE, "--claim=disk", "--", *TRAINING)
    assert bench.run(GKE, "apply", "--context=c", *options).returncode == 0
    assert bench.calls() == [["kubectl", "--context=c", "--namespace=default", "apply", "--filename=-"]]
    assert bench.stdins() == [bench.run(GKE, "render", *options).stdout]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'error: resource mapping not found for "one": no matches for kind "JobSet" in version',
            "no JobSet controller",
        ),
        ('error: context "c" does not exist', "get-credentials"),
        ('The JobSet "one" is invalid: spec.replicatedJobs: Invalid value: field is immutable', "launch/gke.sh delete"),
        ("Error from server (Forbidden): jobsets is forbidden: User cannot create", "may not create"),
    ],
)
def test_what_the_cluster_refuses_is_explained(bench, text, message):
    bench.play(["apply", [{"rc": 1, "err": text + "\n"}]])
    done = bench.run(GKE, "apply", "--context=c", "--name=one", *SLICE, "--claim=disk", "--", *TRAINING)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_stop_suspends_resume_goes_on_and_delete_wants_the_name(bench):
    where = ("--context=c", "--name=one")
    for verb in ("stop", "resume"):
        assert bench.run(GKE, verb, *where).returncode == 0
    suspended = [json.loads(option(argv, "--patch"))["spec"]["suspend"] for argv in bench.calls()]
    assert suspended == [True, False]
    assert bench.run(GKE, "stop", *where, "--queue=q").returncode == 1
    assert bench.run(GKE, "delete", *where, stdin="two\n").returncode == 1
    assert len(bench.calls()) == 2
    assert bench.run(GKE, "delete", *where, stdin="one\n").returncode == 0
    assert bench.calls()[-1][-3:] == ["delete", "jobset", "one"]


@pytest.mark.parametrize("verb", ["apply", "status", "logs", "stop", "resume", "delete"])
def test_a_dry_run_of_gke_calls_nothing(bench, verb):
    done = bench.run(GKE, verb, "--dry-run", "--context=c", "--name=one", *SLICE, "--claim=d", "--", *TRAINING)
    assert done.returncode == 0 and shlex.split(done.stdout.splitlines()[0])[0] == "kubectl"
    assert bench.calls() == []


# ------------------------------------------------------------------------------------------------------------------ XPK

CLUSTER = ("--name=one", "--cluster=c", "--zone=z", "--project=p", IMAGE, "--storage=disk")


def test_xpk_is_told_to_restart_and_to_leave_time_and_signals_reach_the_entry_point(bench):
    done = bench.run(XPK, "create", *CLUSTER, "--tpu-type=v5p-128", "--slices=2", "--", *TRAINING, AWKWARD[0])
    assert done.returncode == 0, done.stderr
    (argv,) = bench.calls()
    assert argv[:4] == ["xpk", "workload", "create", "--workload=one"]
    assert option(argv, "--num-slices") == "2" and option(argv, "--termination-grace-period-seconds") == "300"
    assert option(argv, "--max-restarts") == "10" and option(argv, "--restart-on-exit-codes") == "1"
    first, program, *words = shlex.split(option(argv, "--command"))
    assert (first, program) == ("exec", "/app/launch/container.sh") and words == [*TRAINING, AWKWARD[0]]


def test_xpk_on_gpus_passes_on_what_it_knows_of_the_coordinator(bench):
    done = bench.run(
        XPK, "create", "--dry-run", *CLUSTER, "--device-type=h100-mega-80gb-8", "--hosts=4", "--", *TRAINING
    )
    (argv,) = commands(done.stdout)
    entry = bench.program("entry", "#!/usr/bin/env bash\necho $JOPSD_COORDINATOR $JOPSD_PROCESSES $JOPSD_PROCESS $*\n")
    line = option(argv, "--command").replace("/app/launch/container.sh", str(entry))
    known = {"JAX_COORDINATOR_ADDRESS": "one-0", "JAX_COORDINATOR_PORT": "6002", "NNODES": "4", "NODE_RANK": "3"}
    assert bench.run("bash", "-c", line, **known).stdout.split() == ["one-0:6002", "4", "3", *TRAINING]
    quotes = bench.run(XPK, "create", *CLUSTER, "--device-type=h100-mega-80gb-8", "--", *TRAINING, 'a.b="c"')
    assert quotes.returncode == 1 and "config file" in quotes.stderr


def test_xpk_deletes_only_what_is_named_again(bench):
    assert bench.run(XPK, "delete", *CLUSTER, stdin="\n").returncode == 1
    assert bench.run(XPK, "create", *CLUSTER, "--", *TRAINING).returncode == 1  # no hosts
    assert bench.calls() == []
    assert bench.run(XPK, "delete", *CLUSTER, "--yes").returncode == 0
    assert option(bench.calls()[0], "--workload") == "one"
