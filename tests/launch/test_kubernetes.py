"""launch/kubernetes against the schemas of Kubernetes and the command line of the project. No cluster is involved."""

import re
import tomllib

import pytest
import yaml

from extract import workers
from revelio_jax import cli
from revelio_jax.store import Worker
from tests.helpers import ROOT

FOLDER = ROOT / "launch" / "kubernetes"


def documents(pods: int | None = None) -> dict[str, dict]:
    """Return the documents by kind. ``pods`` replaces the number in the marked lines, as launch/README.md does."""
    texts = [path.read_text() for path in sorted(FOLDER.glob("*.yaml"))]
    if pods:
        texts = [re.sub(r"[0-9]*  # pods", f"{pods}  # pods", text) for text in texts]
    return {document["kind"]: document for text in texts for document in yaml.safe_load_all(text)}


FILES = documents()
SETTINGS = FILES["ConfigMap"]["data"]


def extraction(files: dict[str, dict]) -> dict:
    return files["Job"]["spec"]


def training(files: dict[str, dict]) -> dict:
    return files["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]


def command(job: dict, index: int) -> list[str]:
    """Return the command of the pod ``index``, with its variables replaced as Kubernetes does."""
    (container,) = job["template"]["spec"]["containers"]
    variables = {**SETTINGS, "JOB_COMPLETION_INDEX": str(index)}
    words = [*container["command"], *container["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in words]


def test_the_files_have_the_fields_of_kubernetes():
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    # JobSet is not a part of Kubernetes: of it, only the jobs that it creates are checked here.
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "workers"}, "spec": training(FILES)}
    for document in (FILES["ConfigMap"], FILES["PersistentVolumeClaim"], FILES["Job"], job):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    wrong = {**job, "spec": {**training(FILES), "completion": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="completion"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("pods", [None, 8])
def test_each_pod_of_extraction_is_another_worker(pods):
    job, numbers = extraction(documents(pods)), []
    count = job["completions"]
    assert (job["parallelism"], count) == (count, pods or 4)
    for index in range(count):
        program, step, *flags = command(job, index)
        assert (program, step) == ("revelio", "extract")
        config, _ = cli.parse(["extract", *flags], "")
        numbers.append(workers.find(config.extract, {}).worker)
    assert numbers == [Worker(index, count) for index in range(count)]


@pytest.mark.parametrize("pods", [None, 8])
def test_each_pod_of_training_is_another_process_and_the_first_one_is_the_coordinator(pods):
    files = documents(pods)
    jobset, job = files["JobSet"], training(files)
    count = job["completions"]
    assert (job["parallelism"], count) == (count, pods or 2)
    (workers,) = jobset["spec"]["replicatedJobs"]
    host = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{jobset['metadata']['name']}"
    for index in range(count):
        program, step, *flags = command(job, index)
        assert (program, step) == ("revelio", "train")
        config, _ = cli.parse(["train", *flags], "")
        assert config.train.resume
        mesh = config.mesh
        assert (mesh.distributed, mesh.process, mesh.processes) == (True, index, count)
        assert mesh.coordinator == f"{host}:{job['template']['spec']['containers'][0]['ports'][0]['containerPort']}"
        assert config.data.lanes % mesh.processes == 0


def test_the_image_has_the_files_that_the_installation_needs_and_no_others():
    copied = [
        words[:-1]
        for line in (FOLDER / "Dockerfile").read_text().splitlines()
        if (words := line.split()[1:]) and line.startswith("COPY ")
    ]
    names = {name for line in copied for name in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    licenses = project["project"]["license-files"]
    needed = {*wheel["only-include"], project["project"]["readme"], *licenses, "pyproject.toml"}
    assert names == needed | {"constraints-newest.txt"}
    assert all((ROOT / name).exists() for name in names)
