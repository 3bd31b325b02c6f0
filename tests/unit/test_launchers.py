"""What each launcher's variables say, and which of them count where one launcher runs inside another."""

import os
import re

import pytest
import torch
import torch.distributed as dist

from ttt_dist.launch.launchers import (
    PORTS,
    DistInfo,
    LaunchInfo,
    TaskPlace,
    detect_launcher,
    detect_task,
    expand_hosts,
    tasks_per_host,
)
from ttt_dist.launch.process_group import choose_device, current_dist_info, prepare_process, require_own_gpu
from ttt_dist.util.errors import UserError

DEEPSPEED = {
    "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "2", "CROSS_SIZE": "3",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MVAPICH = {name.replace("OMPI", "MV2"): value for name, value in MPIRUN.items()}
JSRUN = {
    "JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_LOCAL_SIZE": "2",
    "PMIX_RANK": "2", "LSB_JOBID": "7",
}  # fmt: skip
PALS = {
    "PALS_RANKID": "5", "PALS_NODEID": "1", "PALS_LOCAL_RANKID": "1", "PMI_RANK": "5", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "1",
    "PMI_LOCAL_SIZE": "4",
}  # fmt: skip
FLUX = {
    "FLUX_JOB_ID": "f2Y", "FLUX_JOB_SIZE": "5", "FLUX_JOB_NNODES": "2", "FLUX_TASK_RANK": "2", "FLUX_TASK_LOCAL_ID": "2",
    "PMI_RANK": "2", "PMI_SIZE": "5", "PMI_FD": "9",
}  # fmt: skip
# As SLURM 22.05 gives them: to the script of `sbatch -n3 -N2`, and, beside those, to the last task of an srun in it.
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "1234", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "3", "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "2,1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip
STEP = BATCH_SCRIPT | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
}  # fmt: skip
ALONE = LaunchInfo(DistInfo(rank=0, world_size=1, local_rank=0, local_size=1))


def place(environment: dict[str, str]) -> tuple[int, int, int, int]:
    it = detect_launcher(environment).dist_info
    return it.rank, it.world_size, it.local_rank, it.local_size


def test_each_launcher() -> None:
    assert place(DEEPSPEED) == (5, 6, 1, 2)
    assert place(TORCHRUN) == (3, 4, 1, 2)
    assert place(MPIRUN) == (2, 4, 0, 2)
    assert place(HYDRA) == (3, 4, 1, 2)
    assert place(STEP) == (2, 3, 0, 1)
    assert place(MVAPICH) == (2, 4, 0, 2)
    assert place({name.replace("OMPI", "MVP"): value for name, value in MPIRUN.items()}) == (2, 4, 0, 2)
    assert place(JSRUN) == (2, 4, 0, 2)
    assert place(PALS) == (5, 8, 1, 4)
    assert place(FLUX) == (2, 5, 2, 3)
    assert detect_launcher({}) == ALONE


def test_work_is_shared_out_under_each_launcher() -> None:
    for variables, found in (
        (MPIRUN, TaskPlace(2, 4, is_mpi=True)),
        (MVAPICH, TaskPlace(2, 4, is_mpi=True)),
        (HYDRA, TaskPlace(3, 4, is_mpi=True, local_rank=1)),
        (JSRUN, TaskPlace(2, 4, is_mpi=True)),
        (PALS, TaskPlace(5, 8, is_mpi=True, local_rank=1)),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, TaskPlace(3, 4, is_mpi=True)),
        ({"PMIX_RANK": "3"}, TaskPlace(3, 0, is_mpi=True)),
        (STEP | {"PMIX_RANK": "2"}, TaskPlace(2, 3, is_mpi=False)),  # many clusters offer PMIx to every task
        (FLUX, TaskPlace(2, 5, is_mpi=False, local_rank=2)),
        (TORCHRUN, TaskPlace(3, 4, is_mpi=False, local_rank=1)),
        (BATCH_SCRIPT, TaskPlace(0, 1, is_mpi=False)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, TaskPlace(0, 1, is_mpi=False)),
    ):
        assert detect_task(variables) == found


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "64"}, {"RANK": "3"}, {"PMI_SIZE": "4"}, {"PMI_RANK": "1"}, {"PALS_RANKID": "0", "PALS_NODEID": "0"},
        {"PMIX_RANK": "0"}, {"PMIX_RANK": "3"}, {"FLUX_JOB_SIZE": "2"}, {"JSM_NAMESPACE_RANK": "1"}, {"ALPS_APP_PE": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2"}, {"MVP_COMM_WORLD_RANK": "1"}, {"MPIRUN_NPROCS": "4"}, {"RANK": "", "WORLD_SIZE": "4"},
        {"HOROVOD_RANK": "0"}, {"HOROVOD_SIZE": "2"}, {"MP_CHILD": "0"}, {"LOCAL_RANK": "1"}, {"LOCAL_WORLD_SIZE": "2"},
        {"NODE_RANK": "1"}, {"GROUP_RANK": "1"}, {"PBS_VNODENUM": "1"}, {"MPI_LOCALRANKID": "1"},
        {"OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_one_of_several_is_never_taken_for_the_only_one(variables: dict[str, str]) -> None:
    with pytest.raises(UserError, match="tells of several processes.*set RANK, WORLD_SIZE and LOCAL_RANK") as error:
        detect_launcher(variables)
    assert "\n" not in str(error.value)


def test_mpi_that_does_not_tell_the_place_on_the_host_is_asked_for_it() -> None:
    bare = {"PMI_RANK": "1", "PMI_SIZE": "4"}
    with pytest.raises(UserError, match="process 1 of 4 .* set LOCAL_RANK and LOCAL_SIZE"):
        detect_launcher(bare)
    assert place(bare | {"LOCAL_RANK": "1", "LOCAL_SIZE": "2"}) == (1, 4, 1, 2)
    assert place({"PMI_RANK": "0", "PMI_SIZE": "1"}) == (0, 1, 0, 1)


def test_variables_that_tell_of_nobody_else() -> None:
    for variables in (
        {"WORLD_SIZE": "1"}, {"RANK": "0"}, {"LOCAL_RANK": "0"}, {"SLURM_JOB_ID": "3", "PMIX_RANK": "0"}, {"NODE_RANK": "0"},
        {"PBS_VNODENUM": "0"}, {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
    ):  # fmt: skip
        assert detect_launcher(variables) == ALONE and detect_task(variables) == TaskPlace(0, 1, is_mpi=False)


def test_a_dry_run_is_asked_about_so_many_processes() -> None:
    it = detect_launcher({"WORLD_SIZE": "64"}, describes=True).dist_info
    assert (it.rank, it.world_size) == (0, 64)
    assert detect_launcher({}, describes=True) == ALONE


def test_hosts_are_called_what_the_launcher_calls_them() -> None:
    deepspeed, torchrun, step = (detect_launcher(e).dist_info for e in (DEEPSPEED, TORCHRUN, STEP))
    assert (deepspeed.hosts[deepspeed.host], torchrun.hosts[torchrun.host]) == ("host 3 of 3", "host 2 of 2")
    assert (step.hosts, step.host) == (("n1", "n2"), 1)
    assert detect_launcher(MPIRUN).dist_info.hosts == ()


def test_a_batch_script_and_an_interactive_shell_are_alone() -> None:
    """They are told how many tasks an srun in them would start; they are none of them."""
    assert detect_launcher(BATCH_SCRIPT) == ALONE
    interactive = {name: value for name, value in BATCH_SCRIPT.items() if name != "SLURM_PROCID"}
    assert detect_launcher(interactive) == ALONE
    for special in (0xFFFFFFFB, 0xFFFFFFFA):  # SLURM's numbers of the batch and the interactive step
        assert detect_launcher(STEP | {"SLURM_STEP_ID": str(special)}) == ALONE


def test_the_inner_launcher_counts() -> None:
    assert place(STEP | DEEPSPEED) == place(DEEPSPEED)
    assert place(MPIRUN | DEEPSPEED) == place(DEEPSPEED)
    assert place(STEP | MPIRUN) == place(MPIRUN)  # mpirun starts its daemons with an srun of its own
    assert place(BATCH_SCRIPT | MPIRUN) == place(MPIRUN)
    assert detect_launcher(STEP | {"PMI_RANK": "2", "PMI_SIZE": "3"}) == detect_launcher(STEP)  # srun --mpi=pmi2


def test_only_slurm_knows_where_to_meet() -> None:
    assert {detect_launcher(e).address for e in (DEEPSPEED, TORCHRUN, MPIRUN, HYDRA, {})} == {None}
    step = detect_launcher(STEP)
    assert step.address == "n1"
    assert step.port in PORTS
    others = (STEP | {"SLURM_JOB_ID": "1235"}, STEP | {"SLURM_STEP_ID": "1"})
    assert len({step.port, *(detect_launcher(other).port for other in others)}) == 3
    first_task = STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    assert (detect_launcher(first_task).address, detect_launcher(first_task).port) == (step.address, step.port)


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("node7", ["node7"]),
        ("n[1-2,7]", ["n1", "n2", "n7"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("gpu[098-101]", ["gpu098", "gpu099", "gpu100", "gpu101"]),
        ("a1,b[2-3]-ib,c", ["a1", "b2-ib", "b3-ib", "c"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
    ],
)
def test_lists_of_hosts(short: str, names: list[str]) -> None:
    assert expand_hosts(short) == names


@pytest.mark.parametrize("wrong", ["", "n[1-2", "n1]", "n[1-2],,m"])
def test_no_lists_of_hosts(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no list of hosts"):
        expand_hosts(wrong)


def test_tasks_per_host() -> None:
    assert tasks_per_host("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_host("8") == [8]
    with pytest.raises(ValueError, match="'2x3' is no list of tasks"):
        tasks_per_host("2x3")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "rank 4 of 4"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "'x'"),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NODELIST"}, "SLURM_STEP_NODELIST' is not set"),
        (DEEPSPEED | {"LOCAL_RANK": "2"}, "on its host 2 of 2"),
        (STEP | {"SLURM_NODEID": "7"}, "index out of range"),
        (STEP | {"SLURM_STEP_NODELIST": "n[1-99999999999]"}, "are more than 100,000 hosts"),
    ],
)
def test_nonsense_is_one_line(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        detect_launcher(environment)
    assert "\n" not in str(error.value)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment of its own for what `current_dist_info` and `prepare_process` write."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    return monkeypatch


def test_the_environment_says_it_in_the_words_of_torch(fresh: pytest.MonkeyPatch) -> None:
    os.environ.update(STEP)
    assert current_dist_info() == detect_launcher(STEP).dist_info
    said = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR")}
    assert said == {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "n1"}
    assert int(os.environ["MASTER_PORT"]) == detect_launcher(STEP).port


def test_where_to_meet_can_be_given(fresh: pytest.MonkeyPatch) -> None:
    os.environ.update(STEP | {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "4711"})
    current_dist_info()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.9", "4711")


def test_cores_are_shared_out_unless_slurm_gave_each_task_its_own(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr("torch.set_num_threads", lambda _: None)
    fresh.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for variables, threads in (({}, "4"), ({"SLURM_CPUS_PER_TASK": "16"}, "16"), ({"OMP_NUM_THREADS": "3"}, "3")):
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.update(variables)
        prepare_process(local_size=4)
        assert os.environ["OMP_NUM_THREADS"] == threads


def test_a_gpu_is_taken_once() -> None:
    store = dist.HashStore()
    require_own_gpu(store, "GPU-1")
    require_own_gpu(store, "GPU-2")
    with pytest.raises(UserError, match=r"two processes on \S+ have the same GPU \(GPU-1\)"):
        require_own_gpu(store, "GPU-1")


def test_each_process_has_its_gpu(fresh: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    fresh.setattr("torch.cuda.is_available", lambda: True)
    fresh.setattr("torch.cuda.set_device", chosen.append)
    third = DistInfo(rank=3, world_size=8, local_rank=3, local_size=4)
    for num_devices, index in ((4, 3), (1, 0)):  # all of the host's; SLURM may show each task its own alone
        fresh.setattr("torch.cuda.device_count", lambda count=num_devices: count)
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = "3"
        assert choose_device(third) == torch.device("cuda", index) and chosen[-1] == index
        assert os.environ["LOCAL_RANK"] == str(
            index
        )  # DeepSpeed takes it for the number of the GPU, and wants MPI's the same
        assert "OMPI_COMM_WORLD_LOCAL_RANK" not in os.environ
    fresh.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="has 2 GPUs for 4 processes"):
        choose_device(third)
