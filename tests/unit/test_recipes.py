"""Recipes for clusters that are not here: Slurm's job script by dask-jobqueue, the Dask operator's schema."""

import importlib.util
import re
import subprocess
import warnings
from pathlib import Path

import pytest
import yaml

from periodic_lib.sweeping.schedulers import kubernetes, slurm

KEYS = {"queue", "cores", "processes", "job_cpu", "memory", "walltime", "job_extra_directives"}
KEYS |= {"job_script_prologue", "worker_extra_args"}


def test_a_job_of_slurm_is_one_pinned_worker():
    recipe = slurm("/shared/results", threads=4, walltime="02:00:00", queue="long")
    assert set(recipe) == KEYS
    assert (recipe["cores"], recipe["processes"], recipe["job_cpu"]) == (1, 1, 4)
    assert "export PERIODIC_CACHE=/shared/results" in recipe["job_script_prologue"]
    assert "export OMP_NUM_THREADS=4" in recipe["job_script_prologue"]
    assert recipe["worker_extra_args"][:4] == ["--resources", "CPU=4", "--lifetime", "6900s"]  # 5 minutes early
    assert slurm("/r", gpu=True)["job_extra_directives"] == ["--gres=gpu:1"]
    assert slurm("/r", gpu=True)["worker_extra_args"][1] == "GPU=1"


@pytest.mark.skipif(importlib.util.find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed")
@pytest.mark.parametrize("gpu", [False, True])
def test_the_job_script_of_slurm_is_what_was_meant(gpu, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dask_jobqueue import SLURMCluster

        with SLURMCluster(
            **slurm("/shared/results", threads=2, gpu=gpu, queue="long"), scheduler_options={"host": "127.0.0.1"}
        ) as cluster:
            script = cluster.job_script()
    path = tmp_path / "job.sh"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert "#SBATCH --cpus-per-task=2" in script
    assert "#SBATCH -p long" in script
    assert "#SBATCH -t 04:00:00" in script
    assert ("#SBATCH --gres=gpu:1" in script) == gpu
    assert "export PERIODIC_CACHE=/shared/results" in script
    worker = next(line for line in script.splitlines() if "dask_worker" in line or "dask worker" in line)
    assert "--nthreads 1" in worker
    assert f"--resources {'GPU=1' if gpu else 'CPU=2'}" in worker
    assert re.search(r"--lifetime 14100s", worker)


def containers(spec):
    return spec["spec"]["worker"]["spec"]["containers"], spec["spec"]["scheduler"]["spec"]["containers"]


def test_a_cluster_of_kubernetes_mounts_the_results_and_asks_for_what_it_offers():
    spec = kubernetes("image:1", "/results", "claim", workers=3, threads=2, gpu=True)
    (worker,), (scheduler,) = containers(spec)
    assert worker["resources"]["limits"] == {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}
    assert worker["args"][:2] == ["dask", "worker"]
    assert "GPU=1" in worker["args"]
    assert {"name": "PERIODIC_CACHE", "value": "/results"} in worker["env"]
    volume = spec["spec"]["worker"]["spec"]["volumes"][0]
    assert worker["volumeMounts"] == [{"name": volume["name"], "mountPath": "/results"}]
    assert volume["persistentVolumeClaim"]["claimName"] == "claim"
    assert scheduler["args"] == ["dask", "scheduler"]
    service = spec["spec"]["scheduler"]["service"]
    ports = {port["name"] for port in scheduler["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == ports
    assert service["selector"]["dask.org/cluster-name"] == spec["metadata"]["name"]
    assert yaml.safe_load(yaml.safe_dump(spec)) == spec


def schema():
    """The operator's own, of its custom resource, where dask-kubernetes is there."""
    found = importlib.util.find_spec("dask_kubernetes")
    if found is None:
        return None
    path = (
        Path(found.submodule_search_locations[0])
        / "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    )
    return yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.skipif(schema() is None, reason="dask-kubernetes is not installed")
@pytest.mark.parametrize("gpu", [False, True])
def test_a_cluster_of_kubernetes_is_by_the_operators_schema(gpu):
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(schema())
    spec = kubernetes("image:1", "/results", "claim", gpu=gpu)
    assert list(checker.iter_errors(spec)) == []
    del containers(spec)[0][0]["name"]  # the check can fail
    assert list(checker.iter_errors(spec))
