import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("fastseq", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("fastseq")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
