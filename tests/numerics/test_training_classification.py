"""Classification: a head on the last token's hidden state, class weights, macro-F1, and the files that are kept."""

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch
from tests.training_runs import Bench, bench, labelled_rows

from smedje.chat.tokenizer import load_chat_tokenizer
from smedje.data.batches import FlatBatch, flat_batch
from smedje.data.classification import LabelledDataset, class_weights, encode_labelled, label_rows
from smedje.data.encode import EncodedDataset
from smedje.data.forest import Forest, forest
from smedje.errors import InvalidData
from smedje.modeling.adapter import load_adapter
from smedje.training.checkpoint import save_state
from smedje.training.figures import macro_f1
from smedje.training.loop import train
from smedje.training.objectives import classification, to_tensors
from smedje.training.spec import DataSpec, LoraSpec, ObjectiveSpec
from smedje.training.worker import Reporter, train_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    here = bench(tmp_path_factory.mktemp("classes"))
    here.objects.put("data/labelled", labelled_rows(48))
    return here.with_spec(
        data=DataSpec(training_key="data/labelled", validation_fraction=0.25, max_tokens=400),
        objective=ObjectiveSpec(kind="classification"),
        lora=LoraSpec(rank=4, alpha=8.0, dropout=0.1),
        n_epochs=4,
    )


def labelled(dataset: object) -> LabelledDataset:
    assert isinstance(dataset, LabelledDataset)
    return dataset


def test_training_learns_the_classes(place: Bench) -> None:
    """The loss starts near log of the number of classes and falls; held-out texts get their labels."""
    records, _ = place.train()
    first, last = records[0], records[-1]
    assert first.full_valid_loss == pytest.approx(1.0986, abs=0.2)
    assert last.full_valid_accuracy is not None
    assert last.full_valid_accuracy >= 0.9
    assert last.more["full_valid_macro_f1"] >= 0.8


def test_the_head_reads_the_last_token_alone(place: Bench) -> None:
    """A text beside others has the loss that it has alone, also where beginnings are shared; there is no padding."""
    job, state = place.prepare()
    dataset = labelled(job.training.dataset)
    assert state.head is not None
    state.lora.eval()

    def loss(rows: list[int], lay: Callable[[EncodedDataset, Sequence[int]], FlatBatch | Forest] = flat_batch) -> float:
        assert state.head is not None
        batch = to_tensors(lay(label_rows(dataset, rows), range(len(rows))), "cpu")
        return float(classification(state.decoder, state.lora, state.head, batch).loss.detach())

    alone = loss([0]) + loss([1]) + loss([2])
    assert loss([0, 1, 2]) == pytest.approx(alone, rel=1e-5)
    assert loss([0, 1, 2], forest) == pytest.approx(alone, rel=1e-5)
    assert loss([0, 0, 1], forest) == pytest.approx(2 * loss([0]) + loss([1]), rel=1e-5)


def test_class_weights_give_every_class_the_same_total(place: Bench) -> None:
    """Balanced weights times rows of a class are equal; balanced, or named, the knob changes what is learnt."""
    dataset = labelled(place.prepare()[0].training.dataset)
    rows = range(len(dataset))
    weights = class_weights(dataset, rows)
    totals = [weights[c] * list(dataset.classes).count(c) for c in range(3)]
    assert totals == pytest.approx([len(dataset) / 3] * 3)
    balanced = place.with_spec(objective=ObjectiveSpec(kind="classification", balanced=True), max_steps=3)
    named = place.with_spec(objective=ObjectiveSpec(kind="classification", class_weights={"sign": 5.0}), max_steps=3)
    plain, *others = (one.train()[1].head for one in (place.with_spec(max_steps=3), balanced, named))
    assert plain is not None
    for other in others:
        assert other is not None
        assert not torch.equal(plain, other)


def test_macro_f1_is_the_mean_over_classes() -> None:
    """The harmonic mean of precision and recall of each class, 0 where nothing is hit, and their mean."""
    pairs = [(0, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 0)]
    # Class 0: precision 2/3, recall 2/3. Class 1: precision 1/2, recall 1/2. Class 2: nothing hit.
    assert macro_f1(pairs) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1([(3, 3), (5, 5)]) == 1.0


def test_resume_is_byte_identical(place: Bench) -> None:
    """The head and its moments are part of the saved state."""
    _, straight = place.train()
    folder = place.folder("run-stopped")
    job, first = place.prepare()
    list(islice(train(job, first), 8))
    save_state(place.objects, folder, first)
    job, second = place.with_spec(earlier_runs=(folder.run_id,)).prepare()
    assert second.step == 7
    assert list(train(job, second))
    assert straight.head is not None
    assert second.head is not None
    assert torch.equal(second.head, straight.head)


def test_a_checkpoint_keeps_head_and_label_names(place: Bench, tmp_path: Path) -> None:
    """Beside the adapter lie the head and the names of its rows; the adapter loads as any other."""
    folder = place.folder("run-kept")
    result = train_run(place.objects, folder, Reporter(folder), cache=tmp_path)
    kept = place.objects.local_folder(folder.checkpoint_prefix(result.step), tmp_path)
    head = safetensors.torch.load((kept / "classifier.safetensors").read_bytes())["score.weight"]
    assert head.shape == (3, place.prepare()[1].decoder.shape.hidden_size)
    assert json.loads((kept / "classifier.json").read_text()) == {"labels": ["care", "make", "sign"]}
    assert load_adapter(kept)[1].rank == 4


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ({"text": "x"}, "missing_label"),
        ({"text": " ", "label": "a"}, "missing_text"),
        ({"text": "x", "messages": [{"role": "user", "content": "x"}], "label": "a"}, "missing_text"),
        ({"label": "a"}, "missing_text"),
        ({"text": "x", "label": "new"}, "unknown_label"),
        ({"text": "x " * 500, "label": "a"}, "example_too_long"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(place: Bench, tmp_path: Path, line: dict[str, object], code: str) -> None:
    """What is not a labelled text, is too long, or has a label that the training file lacks, names its line."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(msgspec.json.encode({"text": "y", "label": "a"}) + b"\n" + msgspec.json.encode(line))
    tokenizer = load_chat_tokenizer(Path(place.spec.base_folder))
    with pytest.raises(InvalidData, match="Line 2") as caught:
        encode_labelled(path, tokenizer, max_tokens=200, names=("a", "b"))
    assert caught.value.code == code
