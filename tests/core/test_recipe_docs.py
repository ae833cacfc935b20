"""The reference page is the one that the fields make."""

from quantstudio.core.fieldspec import field_specs
from quantstudio.core.paths import resources
from quantstudio.core.recipe_docs import recipe_reference


def test_the_page_is_current():
    written = (resources() / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert written == recipe_reference(), "run: python -m quantstudio.core.recipe_docs > resources/docs/recipe.md"


def test_every_field_is_in_it():
    page = recipe_reference()
    assert all(f"`{spec.path}`" in page and spec.help in page for spec in field_specs())
