"""What TF_CONFIG and Slurm's variables say of a cluster, and whom one can reach."""

import json
import re
import runpy
import socket
import subprocess
import threading

import cli

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT
from worker_processes import free_addresses

from training import cluster
from training.workers import slurm_addresses

HOSTS = ["a:2222", "b:2222", "c:2222"]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_ID", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")


def tf_config(jobs, kind="worker", index=0):
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize("text", [None, "", "{}", '{"cluster": {}}', '{"task": {"type": "worker", "index": 0}}'])
def test_without_a_cluster_one_is_alone(monkeypatch, text):
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    assert cluster.place() == (0, 1, [""])


def test_the_chief_is_the_first_worker(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config({"worker": HOSTS}, index=2))
    assert cluster.place() == (2, 3, HOSTS)
    jobs = {"worker": HOSTS[1:], "chief": HOSTS[:1]}
    monkeypatch.setenv("TF_CONFIG", tf_config(jobs, "chief"))
    assert cluster.place() == (0, 3, HOSTS)
    monkeypatch.setenv("TF_CONFIG", tf_config(jobs, index=1))
    assert cluster.place() == (2, 3, HOSTS)


@pytest.mark.parametrize(
    "text",
    [
        "worker0:2222",
        "[" * 100_000,
        "[]",
        "7",
        '{"cluster": 7}',
        '{"cluster": {"worker": 7}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": 7}',
        tf_config({"worker": HOSTS}, index=3),
        tf_config({"worker": HOSTS}, index=-1),
        tf_config({"worker": HOSTS}, index="0"),
        tf_config({"worker": HOSTS}, index=[]),
        tf_config({"worker": HOSTS}, "chief"),
        tf_config({"worker": HOSTS, "ps": ["d:2222"]}),
        tf_config({"worker": HOSTS, "chief": ["d:2222", "e:2222"]}),
        tf_config({"worker": ["a:2222", "a:2222"]}),
        tf_config({"worker": ["a", "b:2222"]}),
        tf_config({"worker": ["a:0", "b:2222"]}),
        tf_config({"worker": ["a:65536", "b:2222"]}),
        tf_config({"worker": ["http://a:2222", "b:2222"]}),
        tf_config({"worker": ["a:1\nb", "b:2222"]}),
        tf_config({"worker": [None, "b:2222"]}),
        tf_config({"worker": {"0": "a:2222"}}),
    ],
    ids=lambda text: text[:90],
)
def test_a_tf_config_that_makes_no_sense_is_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(cli.UserError, match="^TF_CONFIG: .* correct it, or unset it$") as error:
        cluster.place()
    assert len(str(error.value)) < 400


def in_slurm(monkeypatch, tasks, index, nodes="node[2-3]", per_node="1(x2)", **more):
    variables = dict(SLURM_STEP_NUM_TASKS=tasks, SLURM_PROCID=index, SLURM_STEP_NODELIST=nodes)
    variables |= dict(SLURM_STEP_TASKS_PER_NODE=per_node, SLURM_JOB_ID=123456) | more
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_slurm_tells_the_place(monkeypatch):
    in_slurm(monkeypatch, 2, 1)
    assert cluster.place() == (1, 2, None)
    port = 20000 + 16 * (123456 % 750)
    assert slurm_addresses(1) == [f"node2:{port}", f"node3:{port}"]
    in_slurm(monkeypatch, 1, 0)
    assert cluster.place() == (0, 1, [""])


def test_tasks_of_slurm_are_in_the_order_of_their_nodes(monkeypatch):
    in_slurm(monkeypatch, 4, 3, nodes="node[9-11]", per_node="2,1(x2)", SLURMD_NODENAME="node11")
    assert slurm_addresses(3) == ["node9:27296", "node9:27297", "node10:27296", "node11:27296"]
    monkeypatch.setenv("SLURMD_NODENAME", "node9")
    with pytest.raises(cli.UserError, match="task 3 runs on node9.*--distribution=block"):
        slurm_addresses(3)


def test_steps_that_run_at_once_have_ports_of_their_own(monkeypatch):
    taken = set()
    for job, step in ((100, 0), (100, 1), (101, 0), (101, 1), (849, 0)):
        in_slurm(monkeypatch, 2, 0, nodes="node1", per_node="2", SLURM_JOB_ID=job, SLURM_STEP_ID=step)
        addresses = slurm_addresses(0)
        assert not taken & set(addresses) and all(20000 <= int(a.split(":")[1]) < 32768 for a in addresses)
        taken |= set(addresses)


def test_variables_of_slurm_that_make_no_sense_are_one_line(monkeypatch):
    for tasks, index in (("2", "2"), ("x", "0"), ("2", "-1"), ("2", "")):
        in_slurm(monkeypatch, tasks, index)
        with pytest.raises(cli.UserError, match="SLURM_PROCID.*srun"):
            cluster.place()
    in_slurm(monkeypatch, 2, 1, nodes="")
    with pytest.raises(cli.UserError, match="^Slurm: "):
        slurm_addresses(1)


def test_who_does_not_answer_is_absent(monkeypatch):
    monkeypatch.setattr(cluster, "PROBE_SECONDS", 0.5)
    addresses = free_addresses(4)
    answering, silent = (socket.create_server(("127.0.0.1", int(a.rpartition(":")[2]))) for a in addresses[2:])
    with answering, silent:
        thread = threading.Thread(target=lambda: answering.accept()[0].sendall(b"hello"))
        thread.start()
        assert cluster.absent(addresses, 0) == [f"worker {i} ({addresses[i]})" for i in (1, 3)]
        thread.join()
    for host in ("no-such-host.invalid", "a..b", "a" * 64):
        lost = f"worker 1 ({host}:1, an unknown name)"
        assert cluster.absent([addresses[0], f"{host}:1"], 0) == [lost]


def test_a_port_that_is_taken_is_one_line():
    (address,) = free_addresses(1)
    cluster.check_port(address)
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        with pytest.raises(cli.UserError, match=f"^{address}: this worker cannot listen there .*in use"):
            cluster.check_port(address)


def test_the_job_for_kubernetes_tells_each_pod_its_place(tmp_path):
    service, job = yaml.safe_load_all((ROOT / "docs/kubernetes.yaml").read_text())
    for document in (service, job):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = {each["port"] for each in service["spec"]["ports"]}
    name, count = job["metadata"]["name"], job["spec"]["completions"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"] and job["spec"]["parallelism"] == count
    (tmp_path / "train-dcgan.py").write_text('#!/bin/sh\necho "$TF_CONFIG"\n')
    (tmp_path / "train-dcgan.py").chmod(0o755)
    variables = {each["name"]: each["value"] for each in container["env"]}
    for index in (0, count - 1):
        env = {"PATH": "/usr/bin:/bin", "JOB_COMPLETION_INDEX": str(index), **variables}
        done = subprocess.run(container["command"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        hosts = [f"{name}-{i}.{pod['subdomain']}:{port}" for i in range(count)]
        assert cluster.read_tf_config(done.stdout) == (index, count, hosts)


def test_the_guide_s_tf_config_is_one():
    text = (ROOT / "docs/CLUSTER.md").read_text()
    (example,) = re.findall(r"TF_CONFIG='(.*?)'", text)
    assert cluster.read_tf_config(example) == (0, 2, ["10.0.0.1:2222", "10.0.0.2:2222"])
    assert cluster.read_tf_config(cluster.EXAMPLE).count == 2


def test_the_model_of_what_a_cluster_pays():
    names = runpy.run_path(str(ROOT / "benchmarks/scaling.py"))
    seconds = names["seconds_a_step"]
    assert seconds(1, 2.0, 50, 1, 0.2, 0.05) == 2
    # each of 4 sends 1.5 times 50 MB at 1 Gbit/s, in 9 sums of 6 rounds of 0.2 ms
    assert seconds(4, 2.0, 50, 1, 0.2, 0.05) == pytest.approx(2.1 + 0.6 + 9 * 6 * 0.0002)
