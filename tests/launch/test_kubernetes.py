"""launch/kubernetes against the schemas of Kubernetes and the command line of the project. No cluster is involved."""

import re

import pytest
import yaml

from extract import workers
from revelio_jax import cli
from revelio_jax.store import Worker
from tests.helpers import ROOT

FILES = {
    document["kind"]: document
    for path in sorted((ROOT / "launch" / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
EXTRACT, TRAIN = FILES["Job"]["spec"], FILES["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
SETTINGS = FILES["ConfigMap"]["data"]


def command(job: dict, index: int) -> list[str]:
    """Return the command of the pod ``index``, with its variables replaced as Kubernetes does."""
    (container,) = job["template"]["spec"]["containers"]
    variables = {**SETTINGS, "JOB_COMPLETION_INDEX": str(index)}
    words = [*container["command"], *container["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in words]


def test_the_files_have_the_fields_of_kubernetes():
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    # JobSet is not a part of Kubernetes: of it, only the jobs that it creates are checked here.
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "workers"}, "spec": TRAIN}
    for document in (FILES["ConfigMap"], FILES["PersistentVolumeClaim"], FILES["Job"], job):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    wrong = {**job, "spec": {**TRAIN, "completion": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="completion"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_each_pod_of_extraction_is_another_worker():
    numbers = []
    for index in range(EXTRACT["completions"]):
        program, step, *flags = command(EXTRACT, index)
        assert (program, step) == ("revelio", "extract")
        config, _ = cli.parse(["extract", *flags], "")
        numbers.append(workers.find(config.extract, {}).worker)
    assert numbers == [Worker(index, EXTRACT["completions"]) for index in range(EXTRACT["completions"])]
    assert EXTRACT["parallelism"] == EXTRACT["completions"]


def test_each_pod_of_training_is_another_process_and_the_first_one_is_the_coordinator():
    jobset = FILES["JobSet"]
    (workers,) = jobset["spec"]["replicatedJobs"]
    host = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{jobset['metadata']['name']}"
    for index in range(TRAIN["completions"]):
        program, step, *flags = command(TRAIN, index)
        assert (program, step) == ("revelio", "train")
        config, _ = cli.parse(["train", *flags], "")
        assert config.train.resume
        mesh = config.mesh
        assert (mesh.distributed, mesh.process, mesh.processes) == (True, index, TRAIN["completions"])
        assert mesh.coordinator == f"{host}:{TRAIN['template']['spec']['containers'][0]['ports'][0]['containerPort']}"
        assert config.data.lanes % mesh.processes == 0
    assert TRAIN["parallelism"] == TRAIN["completions"]
