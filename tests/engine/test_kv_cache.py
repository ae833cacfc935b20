import pytest

from quantstudio.engine.kv_cache import cache_argument


class Before:
    def forward(self, input_ids, past_key_values=None, use_cache=None): ...


class Since:
    def forward(self, input_ids, cache=None, use_cache=None): ...


@pytest.mark.parametrize(("model", "name"), [(Before(), "past_key_values"), (Since(), "cache")])
def test_the_cache_goes_by_the_name_that_the_model_knows(model, name):
    """transformers 5.24 renamed the argument; a warning about the old name would reach every user."""
    kept = object()
    assert cache_argument(model, kept) == {name: kept, "use_cache": True}
