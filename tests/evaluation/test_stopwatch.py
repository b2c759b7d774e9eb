from types import SimpleNamespace

import pytest
from detectron2.evaluation.evaluator import inference_context
from torch import nn

from implantdet.evaluation import stopwatch
from implantdet.evaluation.stopwatch import TimedModel


class Slow(nn.Module):
    def forward(self, inputs):
        return [{"instances": item} for item in inputs]


def test_it_answers_like_the_model_and_knows_the_seconds_of_the_last_call(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    model = TimedModel(Slow())
    assert model.seconds != model.seconds  # NaN: it was not called yet
    assert model([1, 2]) == [{"instances": 1}, {"instances": 2}]
    assert model.seconds == 3
    model([])
    assert model.seconds == 0.5


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_the_models_mode_as_it_was(training):
    model = Slow().train(training)
    timed = TimedModel(model)
    with inference_context(timed):
        assert not model.training
    assert model.training == training
