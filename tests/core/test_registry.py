import importlib
from pathlib import Path

import pytest

import telos
from telos.core.errors import TelosError
from telos.core.registry import (
    PACKAGE,
    PRODUCT_CLASS,
    class_slug,
    entries,
    entry,
    method_class,
    planned,
    product_class,
    read_entry,
    use,
)


def test_every_class_is_found_under_its_name():
    for found in entries().values():
        module = importlib.import_module(found.module)
        for name in found.classes:
            cls = getattr(module, name)
            assert method_class(class_slug(cls)) is cls and getattr(telos, name) is cls
        assert class_slug(getattr(module, found.classes[0])) == found.slug
    assert class_slug(method_class("dpo.dporanking")) == "dpo.dporanking"


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(TelosError, match="did you mean ppo or dpo"):
        entry("dppo")
    with pytest.raises(TelosError, match="no variant"):
        method_class("dpo.nonsense")
    unwritten = next(slug for slug in planned() if slug not in entries())
    with pytest.raises(TelosError, match="planned"):
        use(unwritten)
    with pytest.raises(AttributeError):
        _ = telos.NoSuchMethod
    with pytest.raises(TelosError, match="no product of kind"):
        product_class("NoSuchProduct")


def test_a_header_is_literals(tmp_path: Path):
    family = Path(telos.__file__).parent / "methods" / "offline_rl"
    file = tmp_path / "bad.py"
    file.write_text("PAPER = {\n    'method': open('x').read(),\n}\n")
    with pytest.raises(TelosError, match="literals only"):
        read_entry(file)
    assert read_entry(family / "__init__.py") is None


def test_no_two_products_share_a_name():
    names = [name for path in PACKAGE.rglob("*.py") for name in PRODUCT_CLASS.findall(path.read_text())]
    assert len(names) == len(set(names)) and "RewardScorer" in names
