"""From packs to batches: this rank's micro-batches of a step (`PackLoader`), and of a held-out set (`ValidationLoader`).

Both are pure functions of their arguments: the noise comes from (seed, sample, epoch), the choice of packs from
(seed, blend, step, slot). How the slots of a step are dealt to ranks and micro-batches changes nothing else.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ttt_dist.config.objective import Objective
from ttt_dist.config.run import Config
from ttt_dist.data.blend import SampleIndex
from ttt_dist.data.metadata import is_text_set
from ttt_dist.data.set_index import Check
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.sources import PackReader, Sources, open_text_set
from ttt_dist.data.step_sizes import StepSizes
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.noise_schedule import require_noise_schedules
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError


class PackLoader:
    """Batches of [micro_batch, seq_len] for training; `step(n)` gives this rank's micro-batches of step n.

    A background thread prepares the `prefetch` steps that follow; what it raises surfaces in the `step` that asks for
    it. Raises UserError where a shard's layout or seq_len does not fit, or the global batch does not divide.
    """

    def __init__(
        self,
        sources: Sources,
        layout: TokenLayout,
        objective: Objective,
        seed: int,
        seq_len: int,
        sizes: StepSizes,
        micro_batch: int,
        dp_rank: int,
        dp_size: int,
        prefetch: int = 1,
    ) -> None:
        for reader in sources.readers.values():
            check_shard(reader, layout, seq_len)
        for _, global_batch in sizes.batches:
            if global_batch < 1 or global_batch % (micro_batch * dp_size):
                raise UserError(
                    f"global_batch={global_batch} is no multiple of micro_batch={micro_batch} x {dp_size} data-parallel "
                    f"ranks = {micro_batch * dp_size}: choose a multiple, or another micro_batch"
                )
        self.sources, self.layout, self.objective, self.seed, self.seq_len = sources, layout, objective, seed, seq_len
        self.sizes, self.micro_batch, self.dp_rank, self.dp_size = sizes, micro_batch, dp_rank, dp_size
        self.order = sources.order(seed, sizes)
        self._prefetch = prefetch
        self._thread = ThreadPoolExecutor(1, "packs") if prefetch else None
        self._coming: dict[int, Future[list[Batch]]] = {}

    def num_micro_batches(self, step: int) -> int:
        """Micro-batches of one rank in one step: the accumulation steps."""
        return self.sizes.global_batch(step) // (self.micro_batch * self.dp_size)

    def epoch_of(self, step: int) -> dict[str, float]:
        """How often all packs of each source have been read when `step` begins."""
        return {name: count / len(self.sources.readers[name]) for name, count in self.order.counts(step).items()}

    def step(self, step: int) -> list[Batch]:
        """This rank's batches of one step, in order of micro-batch."""
        if self._thread is None:
            return self._prepare(step, self.dp_rank)
        asked = self._coming.pop(step, None) or self._thread.submit(self._prepare, step, self.dp_rank)
        ahead = range(step + 1, step + 1 + self._prefetch)
        for stale in [number for number in self._coming if number not in ahead]:
            self._coming.pop(stale).cancel()
        for number in ahead:
            if number not in self._coming:
                self._coming[number] = self._thread.submit(self._prepare, number, self.dp_rank)
        return asked.result()

    def batches_of(self, step: int, dp_rank: int) -> list[Batch]:
        """What the `step` of that rank's loader gives, read anew."""
        if self._thread is None:
            return self._prepare(step, dp_rank)
        return self._thread.submit(self._prepare, step, dp_rank).result()

    def close(self) -> None:
        """Stop the background thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, step: int, dp_rank: int) -> list[Batch]:
        return [self._micro_batch(step, number, dp_rank) for number in range(self.num_micro_batches(step))]

    def sample_indices(self, step: int) -> list[SampleIndex]:
        """Where this rank's packs of one step come from."""
        numbers = range(self.num_micro_batches(step))
        return [place for number in numbers for place in self._sample_indices(step, number, self.dp_rank)]

    def _sample_indices(self, step: int, number: int, dp_rank: int) -> list[SampleIndex]:
        first = (number * self.dp_size + dp_rank) * self.micro_batch
        return [self.order.sample_at(step, slot) for slot in range(first, first + self.micro_batch)]

    def _micro_batch(self, step: int, number: int, dp_rank: int) -> Batch:
        places = self._sample_indices(step, number, dp_rank)
        readers = self.sources.readers
        packs = [readers[place.source][place.pack] for place in places]
        epochs = [place.epoch for place in places]
        numbers = [list(readers).index(place.source) for place in places]
        objective = self.objective.at(step)
        return ready(collate(packs, self.layout, objective, self.seed, epochs, self.seq_len, numbers, len(readers)))


class ValidationLoader:
    """The first `num_packs` (default: all) packs of a held-out set, in order, always with the noise of epoch 0.

    The objective counts without its stages, so that figures of all steps compare.

    Every rank gets the same number of batches of [micro_batch, seq_len]; the last ones are filled up with empty packs.
    """

    def __init__(
        self,
        reader: PackReader,
        layout: TokenLayout,
        objective: Objective,
        seed: int,
        seq_len: int,
        micro_batch: int,
        dp_rank: int,
        dp_size: int,
        num_packs: int | None = None,
    ) -> None:
        check_shard(reader, layout, seq_len)
        self.reader, self.layout, self.objective, self.seed, self.seq_len = reader, layout, objective, seed, seq_len
        self.micro_batch, self.dp_rank, self.dp_size = micro_batch, dp_rank, dp_size
        self.num_packs = min(num_packs or len(reader), len(reader))

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-self.num_packs // (self.micro_batch * self.dp_size))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            first = (number * self.dp_size + self.dp_rank) * self.micro_batch
            indices = range(first, first + self.micro_batch)
            packs = [self.reader[index] if index < self.num_packs else [] for index in indices]
            yield ready(collate(packs, self.layout, self.objective, self.seed, [0] * self.micro_batch, self.seq_len))


def open_loaders(
    config: Config, data_rank: int, data_size: int, check: Check = "sizes"
) -> tuple[PackLoader, dict[str, ValidationLoader]]:
    """The loaders of this data-parallel rank: of what is trained on, and of the sets of held-out packs by name.

    Opens the sets, looks for their files as `check` says, and checks that they fit each other. Raises UserError.
    """
    require_noise_schedules(config.objective)
    sources, train = Sources.open(config.data, check), config.train
    shard = sources.first
    layout, seq_len = shard.layout, shard.seq_len or 0  # without one it holds no packs, which the loader refuses
    common = (layout, config.objective, config.seed, seq_len)
    loader = PackLoader(
        sources, *common, step_sizes(config), train.micro_batch, data_rank, data_size, config.data.prefetch
    )
    held_out = {
        name: ValidationLoader(
            open_valid(prefix, shard, check), *common, train.micro_batch, data_rank, data_size, train.eval_packs or None
        )
        for name, prefix in config.data.held_out.items()
    }
    return loader, held_out


def step_sizes(config: Config) -> StepSizes:
    """The slots of each step, as the settings say."""
    stages = [(stage.from_step, stage.global_batch) for stage in config.train.batch_stages]
    return StepSizes.of(config.train.global_batch, stages, config.data.skip)


def open_valid(prefix: str, like: ShardReader, check: Check = "sizes") -> PackReader:
    """The held-out packs, which must be of the codec of `like`, or rows of a text set. Raises UserError."""
    if is_text_set(prefix):
        return open_text_set(prefix, like, None, "data.blend.NAME.tokenizer of a source made alike")
    valid = ShardReader(prefix, check)
    valid.require_same_codec(like)
    return valid


def ready(batch: Batch) -> Batch:
    """The batch as a GPU takes it without waiting, where there is one."""
    import torch  # not where the settings of a run are only described

    return batch.pinned() if torch.cuda.is_available() else batch


def check_shard(reader: PackReader, layout: TokenLayout, seq_len: int) -> None:
    """Refuse a shard of another layout, one without packs, or one whose packs are longer than seq_len."""
    layout.require_same(reader.layout, f"{reader.prefix}.json")
    if reader.seq_len is None:
        raise UserError(f"{reader.prefix}: composed samples, not packs; run data_prep pack first")
    if reader.seq_len > seq_len:
        raise UserError(
            f"{reader.prefix}: packed at seq_len {reader.seq_len}, which does not fit seq_len={seq_len}: "
            f"set seq_len={reader.seq_len} or pack again"
        )
